"""The CPU loop of the sketch, compiled by numba where it is installed: one read of the gradient, no per-element hash.

On one core it takes less time than `torch.add` over the same gradient; torch's own `index_add_` takes about twenty
times as long. `available()` says whether it can be used; the torch path in `gradalign.sketch.matrix` gives the same
sketch without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch

from gradalign.sketch.tables import HashTable

__all__ = ["add_matrix", "available"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_ELEMENTS_PER_THREAD = 1 << 18


def _scatter(  # noqa: PLR0917 - numba takes them by position
    matrices: Array,
    row_buckets: Array,
    row_signs: Array,
    col_buckets: Array,
    col_signs: Array,
    wide: Array,
    whole: Array,
) -> None:
    # `wide` has 2 * dim buckets a matrix, so that row bucket + column bucket needs no modulo in the loop.
    dim = wide.shape[1] // 2
    for i in range(matrices.shape[0]):
        for row in range(matrices.shape[1]):
            first = np.int64(row_buckets[row])
            sign = row_signs[row]
            values, window = matrices[i, row], wide[i, first : first + dim]
            for col in range(values.shape[0]):
                window[col_buckets[col]] += values[col] * (sign * col_signs[col])
            if whole.shape[0] > 0:
                for col in range(values.shape[0]):
                    whole[row, col] += values[col]


@cache
def _compile() -> Any:
    try:
        import numba
    except ImportError:
        return None
    return numba.njit(nogil=True, cache=True)(_scatter)


def available() -> bool:
    """Whether numba is installed."""
    return _compile() is not None


@cache
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a forked child needs a pool of its own
    return ThreadPoolExecutor(threads, thread_name_prefix="gradalign-sketch")


def _side_by_side(work: Callable[[int], None], parts: int) -> None:
    rest = [_pool(os.getpid(), parts - 1).submit(work, i) for i in range(1, parts)]
    work(0)
    for future in rest:
        future.result()


def add_matrix(total: Array, matrix: Array, table: HashTable) -> None:
    """Add the sketch of `matrix` to `total`, on as many threads as torch uses.

    Args:
        total: [dim], float32 or float64.
        matrix: [R, C], float32 or float64.
        table: the hashes of that matrix, made for the CPU and the dtype of `total`.
    """
    wide = np.zeros((1, 2 * len(total)), total.dtype)
    add_matrices(wide, matrix[None], table, None)
    total += wide.reshape(2, -1).sum(axis=0)


def add_matrices(wide: Array, matrices: Array, table: HashTable, whole: Array | None) -> None:
    """Add the sketch of each of n matrices to its own row of `wide`, on as many threads as torch uses.

    Args:
        wide: [n, 2 * dim], float32 or float64; bucket b of a sketch is the sum of columns b and b + dim.
        matrices: [n, R, C], float32 or float64, C-contiguous.
        table: the hashes of such a matrix, made for the CPU and the dtype of `wide`.
        whole: [R, C], to add all matrices to; or None. With it, n must be 1.
    """
    count, rows = matrices.shape[:2]
    assert whole is None or count == 1
    parts = min(torch.get_num_threads(), matrices.size // _ELEMENTS_PER_THREAD)
    none = matrices[0, :0]

    def some_matrices(i: int) -> None:
        part = slice(count * i // parts, count * (i + 1) // parts)
        _compile()(matrices[part], *table.rows.arrays(), *table.cols.arrays(), wide[part], none)

    def some_rows(i: int) -> None:
        part = slice(rows * i // parts, rows * (i + 1) // parts)
        target = wide if i == 0 else spare[i - 1]
        summed = none if whole is None else whole[part]
        _compile()(matrices[:, part], *table.rows[part].arrays(), *table.cols.arrays(), target, summed)

    if count > 1:
        parts = max(1, min(parts, count))
        _side_by_side(some_matrices, parts)
        return
    parts = max(1, min(parts, rows))
    spare = np.zeros((parts - 1, *wide.shape), wide.dtype)
    _side_by_side(some_rows, parts)
    wide += spare.sum(axis=0)
