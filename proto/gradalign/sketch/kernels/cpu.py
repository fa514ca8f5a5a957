"""The sketch on the CPU, compiled by numba where it is installed: one read of the gradient, no per-element hash.

`available()` says whether it can be used; the torch path in `gradalign.sketch.hashing.matrix` gives the same sketch without
it, and takes about ten times as long.
"""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch

from gradalign.sketch.kernels.tables import HashTable
from gradalign.sketch.kernels.threads import openmp

__all__ = ["add_fixed", "add_matrices", "available"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_ELEMENTS_PER_THREAD = 1 << 14


_LOG = logging.getLogger(__name__)


@cache
def _kernels() -> ModuleType | None:
    try:
        from gradalign.sketch.kernels import numba_kernels as kernels
    except Exception as error:  # of any kind: a numba that cannot be used is as good as none
        if not isinstance(error, ModuleNotFoundError):
            _LOG.warning(
                "sketching by torch, which takes about ten times as long: numba cannot be used here (%s)", error
            )
        return None
    return kernels


def available() -> bool:
    """Whether numba is installed, and can be used."""
    return _kernels() is not None


def add_matrices(
    buckets: Array,
    matrices: Array,
    table: HashTable,
    *,
    bounds: list[int] | None = None,
    whole: Array | None = None,
    against: Array | None = None,
) -> Array | None:
    """Add sketches of matrices to rows of `buckets`, on as many threads as torch uses.

    Args:
        buckets: [n, 2 * dim], float32 or float64, C-contiguous; bucket b of a sketch is the sum of columns b and b + dim.
        matrices: [n, R, C], float32 or float64, C-contiguous, each of which goes to a row of `buckets` of its own.
        table: the hashes of such a matrix, made for the CPU and the dtype of `buckets`.
        bounds: of runs of rows: then `matrices` is [1, R, C], and each run goes to a row of `buckets` of its own.
        whole: [R, C] of the dtype of `matrices`, to add the one matrix to; with it, n must be 1.
        against: [R, C] of the dtype of `matrices`, to take products with.

    Returns:
        With `against`: each matrix's (or run's) product with it and its own squared norm, float64 [n, 2].
    """
    assert whole is None or (len(matrices) == 1 and bounds is None)
    assert matrices.flags.c_contiguous
    assert buckets.flags.c_contiguous
    kernels = _kernels()
    assert kernels is not None
    assert table.rows.arrays is not None
    assert table.cols.arrays is not None
    tasks = max(len(matrices), 0 if bounds is None else len(bounds) - 1)
    units = matrices.shape[1] if tasks == 1 else tasks
    threads = max(1, min(torch.get_num_threads(), matrices.size // _ELEMENTS_PER_THREAD, units))
    none = np.empty((0, matrices.shape[2]), matrices.dtype)
    others = none if whole is None else whole, none if against is None else against
    spare, found = np.zeros((threads, buckets.shape[1]), buckets.dtype), np.zeros((2, max(threads, len(buckets)), 2))
    runs = np.array(bounds or [], np.int64)
    team = kernels.team_of(matrices.dtype, buckets.dtype) if threads > 1 else None
    if team is None:
        hashes = table.rows.arrays, table.cols.arrays
        kernels.share(0, 1, matrices, runs, *hashes, buckets, spare, others, found[0], found[1])
    else:
        sizes = np.array(
            [*matrices.shape, len(runs), len(buckets), table.dim, len(others[0]), len(others[1])], np.int64
        )
        arrays: tuple[Array, ...]
        arrays = (
            matrices,
            runs,
            *table.rows.arrays,
            *table.cols.arrays,
            buckets,
            spare,
            *others,
            found[0],
            found[1],
            sizes,
        )
        addresses = np.array([array.ctypes.data for array in arrays], np.uintp)
        openmp().GOMP_parallel(team.address, addresses.ctypes.data, threads, 0)
    if threads > 1 and tasks == 1 and bounds is None:
        buckets += spare.sum(axis=0)
        found[0, 0] += found[1].sum(axis=0)
    return None if against is None else found[0, : len(buckets)]


def add_fixed(buckets: Array, matrices: Array, table: HashTable, bulk: Array, scale: float) -> None:
    """Add sketches in fixed point.

    Args:
        buckets: int64 [n, dim].
        matrices: [n, R, C], float32 or float64, C-contiguous.
        table: the hashes of such a matrix, made for the CPU.
        bulk: float64 [n], to add the sums of absolute values to.
        scale: elements are multiplied by it and rounded.
    """
    kernels = _kernels()
    assert kernels is not None
    assert table.rows.arrays is not None
    assert table.cols.arrays is not None
    for each in range(len(matrices)):
        bulk[each] += kernels.fixed(matrices[each], table.rows.arrays, table.cols.arrays, buckets[each], scale)
