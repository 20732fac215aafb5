"""Embeddings: a model that generates no tokens keeps nothing in the cache."""

import pytest
import torch
import transformers
from vllm import TokensPrompt


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_embeddings_are_the_last_hidden_states(tiny, engine, family):
    """vLLM's default for a decoder: the last token's state, of length one. The bound is float32's, for each number.

    A state is a sum of as many terms as tiny_models counts for a logit, and at most its own length.
    """
    model = tiny(family)
    own = transformers.AutoModel.from_pretrained(model.directory, torch_dtype=torch.float64)
    llm = engine(model, task="embed")
    done = llm.embed([TokensPrompt(prompt_token_ids=prompt) for prompt in model.prompts], use_tqdm=False)
    for prompt, output in zip(model.prompts, done, strict=True):
        with torch.no_grad():
            state = own(torch.tensor([prompt]), use_cache=False).last_hidden_state[0, -1]
        found = torch.tensor(output.outputs.embedding, dtype=torch.float64)
        terms = own.config.hidden_size + own.config.intermediate_size
        bound = 2 * (2 * own.config.num_hidden_layers + 1) * terms * 2.0**-24
        assert (found - torch.nn.functional.normalize(state, dim=0)).abs().max() <= bound
