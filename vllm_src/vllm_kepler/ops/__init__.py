"""The operators that upstream compiles for sm_70 and later, registered from Python.

`install()` makes `torch.ops._C…` hold what the path of a float32 model needs. Each family has its own file; the
plain torch function there is what the CPU runs and what a kernel is checked against.
"""

from .registry import install

__all__ = ["install"]
