"""Which device the port serves on.

A K80 needs no switch. For verification `VLLM_KEPLER_VERIFY=1` takes the same path on another NVIDIA GPU, and
`VLLM_KEPLER_DEVICE=cpu` lets the CPU stand in. This module imports no torch, so that asking costs nothing.
"""

import importlib.util
import os

DEVICE = "VLLM_KEPLER_DEVICE"
VERIFY = "VLLM_KEPLER_VERIFY"

K80 = (3, 7)
CPU_PLATFORM = "vllm_kepler.platform.KeplerCpuPlatform"
CUDA_PLATFORM = "vllm_kepler.platform_cuda.KeplerCudaPlatform"


def wants_cpu() -> bool:
    """Whether the CPU stands in.

    Raises ValueError where the switch has a value that it does not know.
    """
    value = os.environ.get(DEVICE, "")
    if value not in ("", "cpu"):
        raise ValueError(f"{DEVICE}: found {value!r}; expected cpu, or no value for a Kepler GPU")
    return value == "cpu"


def numbers(visible: str) -> list[int]:
    """The dies that CUDA_VISIBLE_DEVICES names: up to the first that is none (-1), as CUDA reads it."""
    dies = []
    for die in map(str.strip, visible.split(",")):
        if die in ("", "-1", "NoDevFiles"):
            break
        if not die.isdigit():
            raise ValueError(
                f"CUDA_VISIBLE_DEVICES: found {visible}; expected numbers of dies, such as 0,1: vLLM takes no names. "
                "See `nvidia-smi -L` for the number of each."
            )
        dies.append(int(die))
    return dies


def compute_capabilities() -> list[tuple[int, int]]:
    """Compute capability of each NVIDIA GPU that this process may use, in the order of its dies.

    Asks the driver through NVML, which makes no CUDA context: workers are started after this. Raises ValueError where
    CUDA_VISIBLE_DEVICES names dies otherwise than by their numbers, as vLLM itself cannot take them.
    """
    from vllm.third_party import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = pynvml.nvmlDeviceGetCount()
        dies = range(count) if visible is None else numbers(visible)
        return [
            tuple(pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(die)))
            for die in dies
            if die < count
        ]
    finally:
        pynvml.nvmlShutdown()


def platform_class() -> str | None:
    """Dotted name of the platform class; None leaves the machine to vLLM's own platforms.

    Raises ValueError for GPUs that are not Kepler's, without the switch, where vLLM has no kernels of its own.
    """
    if wants_cpu():
        return CPU_PLATFORM
    capabilities = compute_capabilities()
    if not capabilities:
        return None
    if os.environ.get(VERIFY) == "1" or all(capability == K80 for capability in capabilities):
        return CUDA_PLATFORM
    if importlib.util.find_spec("vllm._C"):
        return None
    found = ", ".join(f"{major}.{minor}" for major, minor in capabilities)
    raise ValueError(
        f"GPU: found compute capability {found}; expected 3.7 (Tesla K80) on every GPU that CUDA_VISIBLE_DEVICES "
        f"leaves. Choose the K80's dies there, or set {VERIFY}=1 to verify the port on another NVIDIA GPU."
    )
