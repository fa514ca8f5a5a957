"""The inner loops of the sketch on the CPU, in the subset of Python that numba compiles."""
# ruff: noqa: PLR0917 - numba takes arguments by position

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from gradalign.sketch.team import openmp

__all__ = ["absorb", "team_of"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def _products(values: Array, against: Array) -> tuple[float, float]:
    dot = norm = values.dtype.type(0)
    for col in range(values.shape[0]):
        dot += values[col] * against[col]
        norm += values[col] * values[col]
    return dot, norm


@cache
def absorb() -> Callable[..., None] | None:
    """The loop over rows of one matrix, compiled; None where numba is not installed.

    Its arguments: matrix [R, C], first row, last row + 1, row buckets and signs, column buckets and signs, buckets
    [2 * dim], whole [R, C] or [0, C], against [R, C] or [0, C], and [dot, squared norm] float64 to add to.
    """
    try:
        import numba
    except ImportError:
        return None
    products = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})(_products)

    def loop(
        matrix: Array,
        first: int,
        last: int,
        row_buckets: Array,
        row_signs: Array,
        col_buckets: Array,
        col_signs: Array,
        buckets: Array,
        whole: Array,
        against: Array,
        found: Array,
    ) -> None:
        # Twice dim buckets, so that row bucket + column bucket needs no modulo in the loop.
        dim = buckets.shape[0] // 2
        for row in range(first, last):
            start = np.int64(row_buckets[row])
            sign = row_signs[row]
            values, window = matrix[row], buckets[start : start + dim]
            for col in range(values.shape[0]):
                window[col_buckets[col]] += values[col] * (sign * col_signs[col])
            if whole.shape[0] > 0:
                for col in range(values.shape[0]):
                    whole[row, col] += values[col]
            if against.shape[0] > 0:
                dot, norm = products(values, against[row])
                found[0] += dot
                found[1] += norm

    compiled: Callable[..., None] = numba.njit(nogil=True, cache=True)(loop)
    return compiled


@cache
def team_of(kind: np.dtype[Any], sum_kind: np.dtype[Any]) -> Any:
    """A function for `GOMP_parallel` that shares out matrices, or the rows of one, among the threads of a team.

    It takes the addresses of: matrices [n, R, C] of dtype `kind`; row buckets and signs; column buckets and signs; buckets
    [n, 2 * dim] of dtype `sum_kind`; spare buckets [threads, 2 * dim]; whole; against; found [n, 2]; spare found
    [threads, 2]; sizes (n, R, C, dim, rows of whole, rows of against), int64. Of one matrix, thread 0 writes to the
    buckets and every other to its own spare ones.
    """
    loop, library = absorb(), openmp()
    if loop is None or library is None:
        return None
    import numba
    from numba import carray, types  # type: ignore[attr-defined]

    number, threads = library.omp_get_thread_num, library.omp_get_num_threads

    def share(at: Any) -> None:
        sizes = carray(at[11], (6,), np.int64)
        count, rows, cols, dim = sizes[0], sizes[1], sizes[2], sizes[3]
        matrices = carray(at[0], (count, rows, cols), kind)
        row_buckets, row_signs = carray(at[1], (rows,), np.uint32), carray(at[2], (rows,), sum_kind)
        col_buckets, col_signs = carray(at[3], (cols,), np.uint32), carray(at[4], (cols,), sum_kind)
        buckets = carray(at[5], (count, 2 * dim), sum_kind)
        whole, against = carray(at[7], (sizes[4], cols), kind), carray(at[8], (sizes[5], cols), kind)
        found = carray(at[9], (count, 2), np.float64)
        me, team = number(), threads()
        if count > 1:
            for i in range(count * me // team, count * (me + 1) // team):
                loop(
                    matrices[i],
                    0,
                    rows,
                    row_buckets,
                    row_signs,
                    col_buckets,
                    col_signs,
                    buckets[i],
                    whole,
                    against,
                    found[i],
                )
            return
        target, result = buckets[0], found[0]
        if me > 0:
            target, result = carray(at[6], (team, 2 * dim), sum_kind)[me], carray(at[10], (team, 2), np.float64)[me]
        first, last = rows * me // team, rows * (me + 1) // team
        loop(matrices[0], first, last, row_buckets, row_signs, col_buckets, col_signs, target, whole, against, result)

    pointers = types.CPointer(types.voidptr)  # type: ignore[no-untyped-call]
    return numba.cfunc(types.void(pointers))(share)
