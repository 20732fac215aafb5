"""One engine in a process of its own: reads a request as JSON from standard input, writes the ids as its last line.

request: {"model": directory, "options": keyword arguments of LLM, "prompts": lists of ids, "tokens": number}.
"""

import json
import sys


def main() -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    request = json.load(sys.stdin)
    llm = LLM(request["model"], skip_tokenizer_init=True, **request["options"])
    sampling = SamplingParams(temperature=0, max_tokens=request["tokens"], ignore_eos=True, detokenize=False)
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in request["prompts"]]
    done = llm.generate(prompts, sampling, use_tqdm=False)
    print(json.dumps([list(output.outputs[0].token_ids) for output in done]), flush=True)


if __name__ == "__main__":
    main()
