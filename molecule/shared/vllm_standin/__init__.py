"""The CPU as a platform on which a released vLLM spans hosts: upstream's own shares memory between all ranks.

Packed into the stand-ins' vLLM (standin.artifacts), and vLLM's own otherwise: only servers over several hosts have it.
"""

import os


def register() -> str | None:
    """Return the platform's name, as the entry point vllm.platform_plugins asks; None for servers of one host."""
    return "vllm_standin.platform.HostsCpuPlatform" if os.environ.get("VLLM_SERVING_HEAD") else None
