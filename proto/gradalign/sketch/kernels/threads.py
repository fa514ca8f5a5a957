"""Runs a compiled loop on the very threads that torch computes with.

After each of its operations torch's OpenMP threads wait by spinning for a while, so a loop on threads of its own would
compete with them for the cores: it gained nothing on two. Handed to torch's own team through `GOMP_parallel`, it starts
within microseconds and runs at full speed.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["openmp"]


@cache
def openmp() -> Any:
    """torch's OpenMP runtime as a ctypes library with `GOMP_parallel`, or None where torch brings none of that kind."""
    package = Path(torch.__file__).parent
    for folder in (package / "lib", package.parent / "torch.libs"):
        for path in sorted(folder.glob("libgomp*.so*")):
            library = ctypes.CDLL(str(path))
            if hasattr(library, "GOMP_parallel"):
                return _typed(library)
    return None


def _typed(library: Any) -> Any:
    library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        getattr(library, name).argtypes = []
        getattr(library, name).restype = ctypes.c_int
    return library
