"""The inner loops of the sketch on the CPU, compiled by numba; importing this needs numba."""
# mypy: disable-error-code="untyped-decorator, no-untyped-call, attr-defined"
# ruff: noqa: PLR0917 - numba takes arguments by position

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numba import carray, cfunc, njit, types

from gradalign.sketch.kernels.threads import openmp

__all__ = ["fixed", "share", "team_of"]

_LOG = logging.getLogger(__name__)

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Kernel: TypeAlias = Callable[..., Any]


def _compiled(fastmath: set[str] | None = None) -> Callable[[Kernel], Kernel]:
    """`njit`, with what it compiles kept on disk where numba finds a folder for that: it needs one that can be written."""

    def compiled(function: Kernel) -> Kernel:
        try:
            kernel: Kernel = njit(nogil=True, cache=True, fastmath=fastmath or False)(function)
        except (RuntimeError, OSError, KeyError):
            _note_uncached()
            kernel = njit(nogil=True, fastmath=fastmath or False)(function)
        return kernel

    return compiled


@cache  # once
def _note_uncached() -> None:
    _LOG.info(
        "this process compiles the sketch anew, some seconds, as neither the package's folder nor a cache of this user can "
        "be written; NUMBA_CACHE_DIR names another folder"
    )


@_compiled({"reassoc", "contract"})
def _products(values: Array, against: Array) -> tuple[float, float]:
    dot = norm = values[0] * 0
    for col in range(values.shape[0]):
        dot += values[col] * against[col]
        norm += values[col] * values[col]
    return dot, norm


@_compiled({"contract"})
def _absorb(
    matrix: Array,
    first: int,
    last: int,
    rows: tuple[Array, Array],
    cols: tuple[Array, Array],
    buckets: Array,
    others: tuple[Array, Array],
    found: Array,
) -> None:
    # Twice dim buckets, so that row bucket + column bucket needs no modulo in the loop.
    dim = buckets.shape[0] // 2
    col_buckets, col_signs = cols
    whole, against = others
    # Two rows at a time, so that column buckets and signs are loaded once for both.
    for row in range(first, last, 2):
        twin = min(row + 1, last - 1)
        start, twin_start = np.int64(rows[0][row]), np.int64(rows[0][twin])
        sign, twin_sign = rows[1][row], rows[1][twin] if twin > row else 0 * rows[1][row]
        values, twins = matrix[row], matrix[twin]
        window, twin_window = buckets[start : start + dim], buckets[twin_start : twin_start + dim]
        for col in range(values.shape[0]):
            bucket, col_sign = col_buckets[col], col_signs[col]
            window[bucket] += values[col] * (sign * col_sign)
            twin_window[bucket] += twins[col] * (twin_sign * col_sign)
        for each in range(row, twin + 1):
            if whole.shape[0] > 0:
                for col in range(values.shape[0]):
                    whole[each, col] += matrix[each, col]
            if against.shape[0] > 0:
                dot, norm = _products(matrix[each], against[each])
                found[0] += dot
                found[1] += norm


@_compiled()
def share(
    me: int,
    team: int,
    matrices: Array,
    bounds: Array,
    rows: tuple[Array, Array],
    cols: tuple[Array, Array],
    buckets: Array,
    spare: Array,
    others: tuple[Array, Array],
    found: Array,
    spare_found: Array,
) -> None:
    """Thread `me`'s share of the work of a team of threads.

    They share out the matrices; or the rows of the one matrix, where all but thread 0 write to their spare buckets; or,
    with bounds, the runs of rows of the one matrix, each of which has buckets of its own.

    Args:
        me: number of the thread.
        team: number of threads.
        matrices: [n, R, C].
        bounds: int64 [m + 1]: run i is rows `bounds[i]` to `bounds[i + 1]`; [0] for none.
        rows: buckets and signs of the R rows.
        cols: buckets and signs of the C columns.
        buckets: [n or m, 2 * dim], to add to.
        spare: [threads, 2 * dim].
        others: a matrix to add all matrices to, and one to take products with; each [R, C], or [0, C] for none.
        found: float64 [n or m, 2], to add the products and the squared norms to.
        spare_found: float64 [threads, 2].
    """
    if bounds.shape[0] > 0:
        groups = bounds.shape[0] - 1
        for i in range(groups * me // team, groups * (me + 1) // team):
            _absorb(matrices[0], bounds[i], bounds[i + 1], rows, cols, buckets[i], others, found[i])
    elif matrices.shape[0] > 1:
        count = matrices.shape[0]
        for i in range(count * me // team, count * (me + 1) // team):
            _absorb(matrices[i], 0, matrices.shape[1], rows, cols, buckets[i], others, found[i])
    else:
        first, last = matrices.shape[1] * me // team, matrices.shape[1] * (me + 1) // team
        if me == 0:
            _absorb(matrices[0], first, last, rows, cols, buckets[0], others, found[0])
        else:
            _absorb(matrices[0], first, last, rows, cols, spare[me], others, spare_found[me])


@_compiled()
def fixed(matrix: Array, rows: tuple[Array, Array], cols: tuple[Array, Array], buckets: Array, scale: float) -> float:
    """Add a matrix [R, C] to int64 buckets [dim], each element times `scale` and rounded; its absolute sum."""
    dim, bulk = buckets.shape[0], 0.0
    for row in range(matrix.shape[0]):
        start, sign = np.int64(rows[0][row]), np.float64(rows[1][row]) * scale
        for col in range(matrix.shape[1]):
            value = np.float64(matrix[row, col])
            bulk += abs(value)
            bucket = start + np.int64(cols[0][col])
            bucket -= dim if bucket >= dim else 0
            scaled = np.rint(value * (sign * cols[1][col]))
            if abs(scaled) < 4.6e18:
                buckets[bucket] += np.int64(scaled)
    return bulk


@cache
def team_of(kind: np.dtype[Any], sum_kind: np.dtype[Any]) -> Any:
    """`share` for `GOMP_parallel`, or None where torch brings no such runtime.

    Its argument is an array of the addresses of: matrices (of dtype `kind`), bounds, row buckets, row signs, column buckets,
    column signs, buckets (of dtype `sum_kind`), spare buckets, the two other matrices, found, spare found, and the sizes
    n, R, C, m + 1, number of buckets [n or m], dim, R or 0, R or 0 as int64.
    """
    library = openmp()
    if library is None:
        return None
    number, threads = library.omp_get_thread_num, library.omp_get_num_threads

    @cfunc(types.void(types.CPointer(types.voidptr)))
    def entry(at: Any) -> None:
        size = carray(at[12], (8,), np.int64)
        n, r, c, many, wide = size[0], size[1], size[2], size[4], 2 * size[5]
        me, team = number(), threads()
        share(
            me,
            team,
            carray(at[0], (n, r, c), kind),
            carray(at[1], (size[3],), np.int64),
            (carray(at[2], (r,), np.uint32), carray(at[3], (r,), sum_kind)),
            (carray(at[4], (c,), np.uint32), carray(at[5], (c,), sum_kind)),
            carray(at[6], (many, wide), sum_kind),
            carray(at[7], (team, wide), sum_kind),
            (carray(at[8], (size[6], c), kind), carray(at[9], (size[7], c), kind)),
            carray(at[10], (many, 2), np.float64),
            carray(at[11], (team, 2), np.float64),
        )

    return entry
