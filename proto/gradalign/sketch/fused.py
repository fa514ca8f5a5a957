"""Whether the fused GPU kernel can sketch a tensor, without importing triton where there is no GPU."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from gradalign.sketch.tables import HashTable

__all__ = ["add_matrices", "available"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _kernels() -> ModuleType | None:
    try:
        from gradalign.sketch import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def available(buckets: Tensor, values: Tensor) -> bool:
    """Whether `add_matrices` takes these: on a CUDA device, summed in float32, and triton is installed."""
    fits = values.device.type == "cuda" and buckets.dtype == torch.float32 and values.dtype in _DTYPES
    return fits and _kernels() is not None


def add_matrices(buckets: Tensor, matrices: Tensor, table: HashTable) -> None:
    """As `gradalign.sketch.triton_kernels.add_matrices`."""
    kernels = _kernels()
    assert kernels is not None
    kernels.add_matrices(buckets, matrices, table)
