"""The kernel library libvllm_kepler.so, by ctypes.

Its interface (csrc/kepler.h) knows pointers, sizes, strides and a stream and nothing of torch, so one file serves
every torch. This module imports nothing of vLLM: tests and benchmarks use it alone.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import envs
from ..errors import LibraryError
from ..version import __version__

DTYPES = {torch.float32: 0, torch.float16: 1}
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "gelu_quick": 3}

_LETTERS = {
    "p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_longlong, "f": ctypes.c_float, "z": ctypes.c_size_t,
}
# Launchers of csrc/kepler.h without their prefix; the types of their arguments, a letter each.
LAUNCHERS = {
    "rms_norm": "pppfiillilp",
    "fused_add_rms_norm": "pppfiillp",
    "rotary_embedding": "ppppiiiiiillp",
    "activation": "ippiillp",
    "activation_and_mul": "ippiillp",
    "reshape_and_cache": "ppppipiiiillp",
    "copy_blocks": "pipizp",
    "swap_blocks": "pppizp",
    "topk_softmax": "pppiiiip",
    "moe_sort": "ppppiiip",
    "moe_product": "pppippppiiiiiip",
    "moe_linear": "pppppfiippppiiiiiip",
    "linear_half": "pppiiip",
    "linear_packed": "pppppfiiiiip",
    "moe_tiled": "ppppppfiippppiiiiiiip",
    "linear_tiled": "ppppppfiiiiiiip",
    "linear_blocks": "pii",
    "linear_unpack": "ppppfiiiip",
    "attention_decode_workspace": "iiiiip",
    "attention_decode": "ppllippipipiiiiiiffippzp",
    "attention_prefill": "ppllippipippiiiiiiiffipp",
}


class KernelLibrary:
    """Launchers of the library as methods, which raise LibraryError if they do not launch.

    Attributes:
        path: the file.
        version: of the port that it was built from.
        architectures: of its code: machine code as sm_NN, PTX as compute_NN.
    """

    if TYPE_CHECKING:

        def __getattr__(self, launcher: str) -> Callable[..., Any]: ...

    def __init__(self, path: Path) -> None:
        advice = "Build it (role vllm, or vllm_src/csrc/build.py) and name it by VLLM_KEPLER_LIBRARY."
        if not path.is_file():
            raise LibraryError(f"{path}: no kernel library there. {advice}")
        try:
            dll = ctypes.CDLL(str(path))
            self._bind(dll)
        except (OSError, AttributeError) as error:
            raise LibraryError(f"{path}: not a kernel library of this port ({error}). {advice}") from None
        self.path = path
        if self.version != __version__:
            raise LibraryError(f"{path}: found version {self.version}, expected the port's {__version__}. {advice}")

    def _bind(self, dll: ctypes.CDLL) -> None:
        text: dict[str, Any] = {}
        for name in ("version", "architectures", "error_text"):
            text[name] = getattr(dll, f"kepler_{name}")
            text[name].restype = ctypes.c_char_p
        self.version = text["version"]().decode()
        self.architectures = tuple(text["architectures"]().decode().split())
        self._error_text = text["error_text"]
        for name, letters in LAUNCHERS.items():
            launcher = getattr(dll, f"kepler_{name}")
            launcher.argtypes = [_LETTERS[letter] for letter in letters]
            launcher.errcheck = functools.partial(self._check, name)
            setattr(self, name, launcher)
        self.moe_capacity = dll.kepler_moe_capacity
        self.moe_capacity.argtypes = [ctypes.c_int] * 3

    def _check(self, name: str, code: int, launcher: Any, arguments: tuple[Any, ...]) -> None:
        if code:
            text = self._error_text(code).decode()
            raise LibraryError(f"kepler_{name}: {text} (error {code}; arguments {arguments})")

    def check_runs_on(self, capability: tuple[int, int]) -> None:
        """Raise LibraryError if a GPU of this compute capability can load none of the library's code.

        Machine code runs within its major version, PTX on every later GPU.
        """
        for architecture in self.architectures:
            kind, _, digits = architecture.partition("_")
            major, minor = int(digits[:-1]), int(digits[-1])
            if kind == "sm" and major == capability[0] and minor <= capability[1]:
                return
            # A Kepler driver takes no PTX newer than 7.4: a K80 needs the machine code.
            if kind == "compute" and (major, minor) <= capability and capability[0] > 3:
                return
        raise LibraryError(
            f"{self.path}: found code for {', '.join(self.architectures)}; expected code for the GPU's compute "
            f"capability {capability[0]}.{capability[1]}. Build the library from this port's csrc."
        )


@functools.cache
def library() -> KernelLibrary:
    """Load the library, once in a process.

    Raises LibraryError if it is missing or belongs to another version of the port.
    """
    return KernelLibrary(envs.VLLM_KEPLER_LIBRARY)


def stream_of(tensor: torch.Tensor) -> int:
    """Return torch's current CUDA stream on the tensor's device: its number alone, without the object around it."""
    return torch._C._cuda_getCurrentRawStream(tensor.get_device())  # type: ignore[attr-defined]


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Return the address of the first element."""
    return None if tensor is None else tensor.data_ptr()


def require_dense_rows(tensor: torch.Tensor) -> None:
    """Raise LibraryError for another dtype than float32, or elements of a row apart."""
    if tensor.dtype is not torch.float32 or tensor.stride(-1) != 1:
        raise LibraryError(
            f"found a tensor of {tensor.dtype}, strides {tensor.stride()}; the kernels take float32 with dense rows"
        )


def matrix(tensor: torch.Tensor) -> torch.Tensor:
    """View a float32 tensor [..., size] as [rows, size] with dense rows.

    Raises LibraryError for another dtype, or for strides that no view has.
    """
    require_dense_rows(tensor)
    return tensor if tensor.dim() == 2 else tensor.view(-1, tensor.shape[-1])
