"""Import of the torch backfill just before vLLM or transformers is first imported.

The .pth file beside the package imports this module in every interpreter of the environment, spawned
workers included. It must cost next to nothing there, so torch is imported only when it is needed.
"""

import sys

NEEDS_BACKFILL = ("vllm", "transformers")


class BackfillFinder:
    """Import finder that finds nothing, and loads the backfill at the first import that needs it."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in NEEDS_BACKFILL:
            sys.meta_path.remove(cls)
            import vllm_kepler.torch_backfill  # noqa: F401


sys.meta_path.insert(0, BackfillFinder)
