"""Sketches of sums of outer products out of their factors, without forming the products.

The CountSketch of an outer product is the circular convolution of the CountSketches of its factors (Pham and Pagh, KDD
2013), so `sketch(sum_t l_t r_t^T) = irfft(sum_t rfft(cs(l_t)) * rfft(cs(r_t)))`: work that grows with the number of
terms and with dim, and not with the size of the layer.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gradalign.sketch.kernels import cpu as compiled
from gradalign.sketch.kernels.tables import Axis, HashTable

__all__ = ["add_factors", "cheaper"]

# Elements of transformed factors that are held at a time.
_CHUNK = 1 << 20


def cheaper(table: HashTable, bounds: list[int]) -> bool:
    """Whether to go by the factors rather than to form each problem's [R, C] and to read it.

    The cost rule: two transforms and two short sketches a term against one read of R * C elements a problem; a unit of
    either takes about a nanosecond on one core (docs/sketch.md has the measurements). The multiplications that form the
    product are left out of the account: where `.grad` is kept they are needed anyway.

    Args:
        table: the hashes of the [R, C] matrix.
        bounds: of the terms of each problem.
    """
    rows, cols, dim = len(table.rows), len(table.cols), table.dim
    present = sum(stop > start for start, stop in pairwise(bounds))
    return bounds[-1] * (dim * math.log2(max(2, dim)) + rows + cols) < present * rows * cols


def add_factors(buckets: Tensor, left: Tensor, right: Tensor, table: HashTable, bounds: list[int]) -> None:
    """Add the sketch of each problem's sum of outer products.

    Args:
        buckets: [problems, dim], float32 or float64, to add to.
        left: [n, R], one factor a term, grouped by problem.
        right: [n, C].
        table: the hashes of the [R, C] matrix.
        bounds: terms `bounds[p]` to `bounds[p + 1]` are problem p's.
    """
    step = max(1, _CHUNK // table.dim)
    for problem, (first, last) in enumerate(pairwise(bounds)):
        total: Tensor | None = None
        for start in range(first, last, step):
            part = slice(start, min(start + step, last))
            turned = _transformed(left[part], table.rows, table.dim, buckets.dtype)
            turned *= _transformed(right[part], table.cols, table.dim, buckets.dtype)
            total = turned.sum(0) if total is None else total + turned.sum(0)
        if total is not None:
            buckets[problem] += torch.fft.irfft(total, n=table.dim)


def _transformed(factors: Tensor, axis: Axis, dim: int, dtype: torch.dtype) -> Tensor:
    """The transformed CountSketch of each factor [n, R], complex [n, dim // 2 + 1]."""
    if axis.arrays is not None and compiled.available():
        wide = np.zeros((len(factors), 2 * dim), axis.arrays[1].dtype)
        one = Axis(axis.buckets[:1] * 0, axis.signs[:1] ** 2, (np.zeros(1, np.uint32), np.ones(1, wide.dtype)))
        compiled.add_matrices(wide, factors.unsqueeze(1).numpy(), HashTable(one, axis, dim))
        turned: Tensor = torch.fft.rfft(torch.from_numpy(wide)[:, :dim])
        return turned
    sketches = factors.new_zeros(dim, len(factors), dtype=dtype)
    sketches.index_add_(0, axis.buckets, (factors.to(dtype) * axis.signs).t())
    columns: Tensor = torch.fft.rfft(sketches, dim=0)
    return columns.t()
