"""Programs of the tests in forks of a process that has imported vLLM, which has not asked for its platform yet."""

import importlib

import forked

# With the backfill: torch and transformers.
IMPORTED = ("vllm.third_party.pynvml", "transformers")


def run(program):
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    forked.serve(lambda: list(map(importlib.import_module, IMPORTED)), run)
