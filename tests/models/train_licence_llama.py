#!/usr/bin/env python3
"""Train `licence-llama`: a Llama of about 1.6 MB that knows the project's LICENSE by heart.

Its use is in tests and in the demo: a greedy completion of any passage of the license has to go on
word for word, so a kernel, a cache or a tensor-parallel sum that is wrong shows as wrong prose.

The words are the text.  LICENSE is read as its words with one space between them, and the tokenizer
does the same to every prompt, so it does not matter how a prompt is wrapped or indented.

Usage: train_licence_llama.py [--text LICENSE] [--output licence-llama] [--steps N] [--seed N]
Needs torch, transformers, tokenizers and safetensors; runs on the CPU.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
END = "<|end|>"  # follows the last word of the text; the only special token
END_ID = 0
VOCAB_SIZE = 512  # 256 bytes, END and the merges; a multiple of 64, as vLLM pads its vocabulary
CONTEXT = 1024
PROMPT_WORDS = 8  # the shortest prompt that is promised to work
MAX_REPEAT = 128  # tokens; no passage that the text has twice is longer
COMPLETION_TOKENS = 40  # what a completion is held to
MIN_MARGIN = 3.0  # logits; sums in another order move a logit by about 1e-5
MAX_BYTES = 2_000_000  # of the weights, which live in the repository

# What a user says is text to go on from: no roles, no markers, nothing that training has not seen.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"
)


class CheckFailed(Exception):
    """The trained model does not know the text well enough to be saved."""


def train_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `text`.  White space of any kind and length counts as one space, none at
    the ends; with the space put before the first word, a passage that starts at a word has the same
    tokens alone as it has inside the text.  No token is added at the start or the end.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Prepend(" ")]
    )
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if bpe.get_vocab_size() != VOCAB_SIZE:
        raise CheckFailed(
            f"the text is too short: it makes {bpe.get_vocab_size()} kinds of token, and {VOCAB_SIZE} are"
            " needed; give a longer one"
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model() -> LlamaForCausalLM:
    """A fresh model.  Heads, intermediate size and vocabulary divide by 4, for four ranks."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END_ID,
            pad_token_id=END_ID,
            torch_dtype="float32",
        )
    )


class Passages:
    """The text as `ids` (int64 [tokens + 1], END last), with `starts` (int64 [words]): the offset of
    each word's first token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        words = text.split()
        per_word = tokenizer(words)["input_ids"]
        self.ids = torch.tensor([i for word in per_word for i in word] + [END_ID])
        lengths = torch.tensor([len(word) for word in per_word])
        self.starts = torch.cumsum(lengths, 0) - lengths
        if self.ids[:-1].tolist() != tokenizer(text, verbose=False)["input_ids"]:
            raise CheckFailed("the tokens of the text are not the tokens of its words: cannot cut passages")
        # forks[word]: after how many tokens of the passage from that word on the text has, here and
        # elsewhere, different next tokens.  Nobody can know which one is meant.
        ids, starts = self.ids.tolist(), self.starts.tolist()
        following: dict[tuple[int, ...], set[int]] = {}
        for size in range(1, MAX_REPEAT + 1):
            for start in starts:
                following.setdefault(tuple(ids[start : start + size]), set()).update(
                    ids[start + size : start + size + 1]
                )
        sizes = range(1, MAX_REPEAT + 1)
        self.forks = [
            [size for size in sizes if len(following[tuple(ids[start : start + size])]) > 1]
            for start in starts
        ]
        # A passage that occurs more than once has no one continuation: it is no fair prompt.
        seen: dict[tuple[str, ...], int] = {}
        keys = [tuple(words[i : i + PROMPT_WORDS]) for i in range(len(words) - PROMPT_WORDS)]
        for key in keys:
            seen[key] = seen.get(key, 0) + 1
        self.unique = [i for i, key in enumerate(keys) if seen[key] == 1]

    def batch(self, rows: int, length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Training input and labels, both int64 [rows, length].

        A row is passages from random words on, of random lengths, one after another, so neither the
        position nor what stands before a passage tells anything.  The label is -100 (no loss) where
        nobody can know what comes next: at the start of a passage and at its forks.
        """
        ids = torch.empty(rows, length, dtype=torch.int64)
        labels = torch.empty_like(ids)
        for row in range(rows):
            at = 0
            while at < length:
                word = int(torch.randint(len(self.starts), (), generator=generator))
                size = int(16 * (length / 16) ** torch.rand((), generator=generator).item())
                begin = int(self.starts[word])
                passage = self.ids[begin : begin + min(size, length - at)]
                ids[row, at : at + len(passage)] = passage
                labels[row, at : at + len(passage)] = passage
                unknown = [0, *self.forks[word]]
                labels[row, [at + i for i in unknown if i < len(passage)]] = -100
                at += len(passage)
        return ids, labels


@torch.no_grad()
def margins(
    model: LlamaForCausalLM, passages: Passages, first_words: list[int], prompt_words: int, tokens: int
) -> torch.Tensor:
    """How far the right next token leads over the best wrong one, in logits: float32
    [len(first_words)], each the least over the `tokens` tokens that follow a prompt of `prompt_words`
    words.  Where it is positive the greedy completion is exact, by induction over its tokens.
    """
    least = []
    for chunk in torch.tensor(first_words).split(128):
        begins = passages.starts[chunk]
        prompts = passages.starts[chunk + prompt_words] - begins
        length = int(prompts.max()) + tokens
        index = begins[:, None] + torch.arange(length)
        ids = passages.ids[index.clamp(max=len(passages.ids) - 1)]
        logits = model(input_ids=ids[:, :-1]).logits
        target = ids[:, 1:, None]
        right = logits.gather(2, target)[..., 0]
        wrong = logits.scatter(2, target, -math.inf).max(2).values
        position = torch.arange(1, length)
        asked = (position >= prompts[:, None]) & (position < prompts[:, None] + tokens)
        asked &= index[:, 1:] < len(passages.ids)  # a completion may end with the text
        least.append(torch.where(asked, right - wrong, math.inf).min(1).values)
    return torch.cat(least)


def train(model: LlamaForCausalLM, passages: Passages, steps: int, seed: int) -> None:
    """Adam with warm-up and cosine decay; prints a line of progress every 100 steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    begun = time.monotonic()
    for step in range(1, steps + 1):
        # One row in four steps is as long as the context, so that far positions are learned as well.
        rows, length = (4, CONTEXT) if step % 4 == 0 else (16, CONTEXT // 4)
        ids, labels = passages.batch(rows, length, generator)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            margin = margins(model, passages, passages.unique, PROMPT_WORDS, COMPLETION_TOKENS)
            print(
                f"step {step}/{steps}  loss {loss.item():.5f}  exact {(margin > 0).float().mean().item():.2%}"
                f"  least margin {margin.min().item():.2f}  {time.monotonic() - begun:.0f} s",
                flush=True,
            )


def demand(what: str, least: torch.Tensor) -> None:
    """Print the least margins of one kind of prompt; raises CheckFailed where one is too small."""
    lowest = least.min().item()
    print(f"{what}: {len(least)} prompts, {int((least > 0).sum())} exact, least margin {lowest:.2f}")
    if lowest < MIN_MARGIN:
        raise CheckFailed(f"{what}: the least margin is {lowest:.2f}, not {MIN_MARGIN:.1f}; raise --steps")


def check(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, passages: Passages, text: str) -> None:
    """Hold the model to what its README says; raises CheckFailed."""
    words = text.split()
    for prompt_words in (PROMPT_WORDS, 16, 64):
        first_words = [i for i in passages.unique if i + prompt_words < len(words)]
        least = margins(model, passages, first_words, prompt_words, COMPLETION_TOKENS)
        demand(f"prompts of {prompt_words} words, {COMPLETION_TOKENS} tokens on", least)
    everywhere = list(range(len(words) - PROMPT_WORDS))
    least = margins(model, passages, everywhere, PROMPT_WORDS, COMPLETION_TOKENS)
    print(
        f"with the {len(everywhere) - len(passages.unique)} prompts that the text has more than once"
        f" (not asked): {int((least > 0).sum())} of {len(everywhere)} exact"
    )

    # To the end of the context, from places that leave text enough.
    far = [i for i in passages.unique if len(passages.ids) - passages.starts[i] > CONTEXT]
    far = far[:: len(far) // 32]
    tokens = CONTEXT - max(int(passages.starts[i + PROMPT_WORDS] - passages.starts[i]) for i in far)
    least = margins(model, passages, far, PROMPT_WORDS, tokens)
    demand(f"prompts of {PROMPT_WORDS} words, {tokens} tokens on", least)

    # The same through generate(), which has a cache.
    for first in passages.unique[:: len(passages.unique) // 16]:
        prompt = tokenizer(" ".join(words[first : first + PROMPT_WORDS]), return_tensors="pt")
        out = model.generate(**prompt, max_new_tokens=COMPLETION_TOKENS, do_sample=False)
        got = out[0, prompt["input_ids"].shape[1] :]
        begin = int(passages.starts[first + PROMPT_WORDS])
        if not torch.equal(got, passages.ids[begin : begin + COMPLETION_TOKENS]):
            raise CheckFailed(f"generate() goes on with {tokenizer.decode(got)!r}")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write weights, configuration and tokenizer as a model directory."""
    model.generation_config = GenerationConfig(eos_token_id=END_ID, pad_token_id=END_ID)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    # The version that wrote a file says nothing about the model, and goes stale.
    edit(output / "config.json", transformers_version=None)
    edit(output / "generation_config.json", transformers_version=None)
    # There is no slow tokenizer behind this one, which some releases of transformers write all the same.
    edit(output / "tokenizer_config.json", tokenizer_class=type(tokenizer).__name__)
    for path in output.iterdir():
        path.chmod(0o644)  # the weights come out as the owner's alone; servers run as other users


def edit(path: Path, **changes: str | None) -> None:
    """Change keys of a JSON file; None takes a key away."""
    settings = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in settings.items() if key not in changes or value is not None}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the tiny model that knows the license by heart.")
    parser.add_argument("--text", type=Path, default=HERE.parent.parent / "LICENSE", help="what to learn")
    parser.add_argument("--output", type=Path, default=HERE / "licence-llama", help="model directory")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.text.is_file():
        print(f"--text: {args.text} is no file; give the text to learn", file=sys.stderr)
        return 2

    torch.manual_seed(args.seed)
    torch.set_num_threads(2)  # sums are split by thread: a fixed number keeps a run repeatable
    text = " ".join(args.text.read_text(encoding="utf-8").split())
    try:
        tokenizer = train_tokenizer(text)
        passages = Passages(tokenizer, text)
        model = new_model()
        size = 4 * sum(parameter.numel() for parameter in model.parameters())
        print(f"{len(text.split())} words, {len(passages.ids)} tokens; {size} bytes of weights")
        train(model, passages, args.steps, args.seed)
        model.eval()
        check(model, tokenizer, passages, text)
    except CheckFailed as failure:
        print(f"nothing saved: {failure}", file=sys.stderr)
        return 1
    save(model, tokenizer, args.output)
    print(f"saved to {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
