"""Whether the fused GPU kernel can sketch a tensor, without importing triton where there is no GPU."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from gradalign.sketch.kernels.tables import HashTable

__all__ = ["add_matrices", "available", "ensure_cache"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_LOG = logging.getLogger(__name__)


@cache
def _kernels() -> ModuleType | None:
    try:
        ensure_cache()
        from gradalign.sketch.kernels import triton_kernels
    except Exception as error:  # of any kind: a triton that cannot be used is as good as none
        if not isinstance(error, ModuleNotFoundError):
            _LOG.warning("sketching by torch, through large temporaries: triton cannot be used here (%s)", error)
        return None
    return triton_kernels


def ensure_cache() -> None:
    """Give triton a folder of this process's own where its cache cannot be written: it compiles nothing without one."""
    given = os.environ.get("TRITON_CACHE_DIR")
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    folder = Path(given) if given else Path(home) / ".triton/cache"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        own = tempfile.mkdtemp(prefix="gradalign-triton-")
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        os.environ["TRITON_CACHE_DIR"] = own
        _LOG.info(
            "triton compiles into %s, as %s cannot be written; TRITON_CACHE_DIR names another folder", own, folder
        )


def available(buckets: Tensor, values: Tensor) -> bool:
    """Whether `add_matrices` takes these: on a CUDA device, summed in float32, and triton is installed."""
    fits = values.device.type == "cuda" and buckets.dtype == torch.float32 and values.dtype in _DTYPES
    return fits and _kernels() is not None


def add_matrices(buckets: Tensor, matrices: Tensor, table: HashTable) -> None:
    """As `gradalign.sketch.kernels.triton_kernels.add_matrices`."""
    kernels = _kernels()
    assert kernels is not None
    kernels.add_matrices(buckets, matrices, table)
