"""The operators that upstream compiles for sm_70 and later, registered from Python.

`install()` registers those in `torch.ops._C…` that a float32 model needs. Each family has its own file; the plain torch
function there runs on the CPU, and kernels are checked against it.
"""

from .registry import install

__all__ = ["install"]
