"""One engine in a process of its own: tensor parallelism, refusals at start, and GPUs, where upstream's memory
profiling takes the end of an earlier engine for a fault.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from forked import Forks
    from tiny_models import TinyModel

MARK, FORKS = "serve_once: ", "SERVE_ONCE_FORKS"
# With a value, engines of other processes may start and end on the same GPUs meanwhile.
SHARED = "SERVE_ONCE_SHARED"
# What every engine imports, and its ranks.
IMPORTED = (
    "vllm.entrypoints.llm", "vllm.executor.mp_distributed_executor", "vllm.model_executor.models.llama",
    "vllm_kepler.cpu_worker", "vllm_kepler.quantization.loader",
)  # fmt: skip
# vLLM asks for a free port and takes it seconds later, when somebody else may have it. A server's unit starts again.
TAKEN, STARTS = "Address already in use", 3


@dataclass(frozen=True)
class Served:
    """What a process did.

    Attributes:
        status: its exit status.
        printed: all that it printed.
        ids: the answer to each prompt; None where it gave none.
        logprobs: of the tokens of each answer, where they were asked for.
        preemptions: how often a sequence was thrown out of the cache.
        swapped: blocks that went to the host's memory.
        replays: how often rank 0 replayed a CUDA graph.
        overlaps: steps on the CPU beside which the output of the last one was handled.
    """

    status: int
    printed: str
    ids: list[list[int]] | None = None
    logprobs: list[list[float]] | None = None
    preemptions: int = 0
    swapped: int = 0
    replays: int = 0
    overlaps: int = 0


@functools.cache
def forks() -> Forks:
    from forked import Forks

    return Forks(__file__, {**os.environ, FORKS: "1"})


def serve(
    model: TinyModel,
    environment: dict[str, str] | None = None,
    copies: int | Sequence[int] = 1,
    with_logprobs: bool = False,
    adapters: Sequence[str | None] = (),
    overlapped: bool = False,
    **options: Any,
) -> Served:
    """Answer a model's prompts, each `copies` times over, in a new process; options are those of vllm.LLM.

    Of `adapters` each prompt has its own directory, or None.

    overlapped: whether outputs are handled as with CUDA graphs (on the CPU; see overlapped.py).

    Of several numbers of copies each is a batch of its own, one after the other.

    With further variables, and on a GPU, the process starts from nothing, and its ranks do. Without, it is a fork of
    one that has imported vLLM, and its ranks are forks of it.
    """
    request = {
        "model": str(model.directory),
        "prompts": model.prompts,
        "copies": [copies] if isinstance(copies, int) else list(copies),
        "tokens": len(model.answers[0]),
        "logprobs": 0 if with_logprobs else None,
        "adapters": list(adapters),
        "overlapped": overlapped,
        "options": {"max_model_len": model.context, "max_num_seqs": 16, **options},
    }
    for _ in range(STARTS):
        if environment is None and os.environ["VLLM_KEPLER_DEVICE"] == "cpu":
            done = forks().run({**os.environ, "VLLM_WORKER_MULTIPROC_METHOD": "fork"}, merged=True, request=request)
        else:
            done = subprocess.run(
                [sys.executable, __file__, json.dumps(request)], text=True, env={**os.environ, **(environment or {})},
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if done.returncode == 0 or TAKEN not in done.stdout:
            break
    lines = [line[len(MARK):] for line in done.stdout.splitlines() if line.startswith(MARK)]
    return Served(done.returncode, done.stdout, **(json.loads(lines[-1]) if lines else {}))


def share_gpus() -> None:
    """Let upstream's memory profiling not take the end of another's engine for a fault."""
    from vllm.worker.worker import Worker

    Worker._assert_memory_footprint_increased_during_profiling = lambda worker: None


def adapter_requests(directories: Sequence[str | None]) -> list[Any] | None:
    """What vLLM is asked for: an adapter for each prompt, or none."""
    from vllm.lora.request import LoRARequest

    numbers = {directory: number for number, directory in enumerate(sorted(filter(None, set(directories))), start=1)}
    return [
        directory and LoRARequest(Path(directory).name, numbers[directory], directory) for directory in directories
    ] or None


def answer(request: dict[str, Any]) -> None:
    import torch
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.worker.cache_engine import CacheEngine

    swapped, replays, overlaps = [], [], []
    swap_out, replay = CacheEngine.swap_out, torch.cuda.CUDAGraph.replay

    def count(engine: CacheEngine, blocks: Any) -> None:
        swapped.append(len(blocks))
        swap_out(engine, blocks)

    def count_replay(graph: torch.cuda.CUDAGraph) -> None:
        replays.append(graph)
        replay(graph)

    CacheEngine.swap_out, torch.cuda.CUDAGraph.replay = count, count_replay
    if request["overlapped"]:
        from overlapped import overlap

        overlaps = overlap()
    llm = LLM(request["model"], skip_tokenizer_init=True, disable_log_stats=False, **request["options"])
    sampling = SamplingParams(temperature=0, max_tokens=request["tokens"], ignore_eos=True, detokenize=False,
                              logprobs=request["logprobs"])
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in request["prompts"]]
    done = [
        output for copies in request["copies"]
        for output in llm.generate(prompts * copies, sampling, use_tqdm=False,
                                   lora_request=adapter_requests(request["adapters"] * copies))
    ]
    preemptions = sum(scheduler.num_cumulative_preemption for scheduler in llm.llm_engine.scheduler)
    answers = [output.outputs[0] for output in done]
    logprobs = None
    if request["logprobs"] is not None:
        logprobs = [
            [chosen[token].logprob for token, chosen in zip(answer.token_ids, answer.logprobs, strict=True)]
            for answer in answers
        ]
    print(MARK + json.dumps({
        "ids": [list(answer.token_ids) for answer in answers], "logprobs": logprobs, "preemptions": preemptions,
        "swapped": sum(swapped), "replays": len(replays), "overlaps": len(overlaps),
    }), flush=True)


def end_with_ranks(run: Callable[[], None]) -> NoReturn:
    """Call `run`, and end this process and the ranks of its engine.

    Upstream's executor hangs where it ends together with the interpreter: a thread starts no more then.
    """
    status = 0
    try:
        run()
    except Exception:
        traceback.print_exc()
        status = 1
    for rank in multiprocessing.active_children():
        rank.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(request: dict[str, Any]) -> None:
    """Answer, and end the process."""
    end_with_ranks(lambda: answer(request))


# In the ranks too, which begin with this module.
if os.environ.get(SHARED):
    share_gpus()
if __name__ == "__main__":
    if FORKS in os.environ:
        import forked

        forked.serve(lambda: list(map(importlib.import_module, IMPORTED)), run)
    else:
        run(json.loads(sys.argv[1]))
