"""The choice of the device that the port serves on.

The GPUs of the table need no switch; envs.py has those for another device. Imports no torch: vLLM asks each process.
"""

import importlib.util
import os
from typing import NamedTuple

from . import envs
from .errors import SettingError


class Gpu(NamedTuple):
    """GPUs that the port is for.

    Attributes:
        name: for messages.
        code: their machine code in the kernel library.
        detected, attention: how lines of the log name them.
    """

    name: str
    code: str
    detected: str
    attention: str


# By compute capability. Only the first takes no PTX of a newer toolkit.
GPUS = {
    (3, 7): Gpu("Tesla K80", "sm_37", "Kepler GPU detected (sm < 70)", "Kepler GPU (sm < 60)"),
    (7, 0): Gpu("Tesla V100, TITAN V or CMP 100-210", "sm_70", "Volta GPU detected (sm_70)", "Volta GPU (sm_70)"),
}
# Whose lines another device has: the CPU, or a GPU that the port is verified on.
USUAL = GPUS[3, 7]
CPU_PLATFORM = "vllm_kepler.platform_cpu.KeplerCpuPlatform"
CUDA_PLATFORM = "vllm_kepler.platform_cuda.KeplerCudaPlatform"


def visible_gpus(visible: str) -> list[int]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names, up to the first -1, as CUDA reads it. Raises SettingError."""
    gpus = []
    for gpu in map(str.strip, visible.split(",")):
        if gpu in ("", "-1", "NoDevFiles"):
            break
        if not gpu.isdigit():
            raise SettingError(
                f"CUDA_VISIBLE_DEVICES: found {visible}; expected numbers of GPUs, such as 0,1: vLLM takes no names. "
                "See `nvidia-smi -L` for the number of each."
            )
        gpus.append(int(gpu))
    return gpus


def compute_capabilities() -> list[tuple[int, int]]:
    """Return the compute capability of each NVIDIA GPU that this process may use.

    Asks the driver through NVML, which makes no CUDA context: workers are started after this. Raises SettingError if
    CUDA_VISIBLE_DEVICES has anything but numbers, which vLLM itself cannot read.
    """
    from vllm.third_party import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        count = pynvml.nvmlDeviceGetCount()
        gpus = range(count) if visible is None else visible_gpus(visible)
        return [
            tuple(pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(gpu)))
            for gpu in gpus
            if gpu < count
        ]
    finally:
        pynvml.nvmlShutdown()


def platform_class() -> str | None:
    """Return the dotted name of the platform class, or None to leave the machine to vLLM's own platforms.

    Raises SettingError for other GPUs without VLLM_KEPLER_VERIFY, unless vLLM has kernels of its own.
    """
    if envs.VLLM_KEPLER_DEVICE == "cpu":
        return CPU_PLATFORM
    capabilities = compute_capabilities()
    if not capabilities:
        return None
    alike = len(set(capabilities)) == 1
    if envs.VLLM_KEPLER_VERIFY or (alike and capabilities[0] in GPUS):
        return CUDA_PLATFORM
    if importlib.util.find_spec("vllm._C"):
        return None
    found = ", ".join(f"{major}.{minor}" for major, minor in capabilities)
    expected = " or ".join(f"{major}.{minor} ({gpu.name})" for (major, minor), gpu in GPUS.items())
    raise SettingError(
        f"GPU: found compute capability {found}; expected {expected}, the same on every GPU that CUDA_VISIBLE_DEVICES "
        "leaves. Choose such GPUs there, or set VLLM_KEPLER_VERIFY=1 to verify the port on another NVIDIA GPU."
    )
