"""The sketch of one gradient matrix."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradalign.sketch.kernels import cpu as compiled
from gradalign.sketch.kernels import gpu as fused
from gradalign.sketch.kernels.tables import HashTable

__all__ = ["add_matrix"]

_BLOCK = 1 << 20
_NATIVE = (torch.float32, torch.float64)


def add_matrix(total: Tensor, gradient: Tensor, table: HashTable, against: Tensor | None = None) -> Tensor | None:
    """Add the sketch of a gradient to `total`, accumulating in the dtype of `total`.

    Args:
        total: [dim], float32 or float64, on the device of the gradient.
        gradient: R * C elements in any floating dtype and shape; read once, never copied whole.
        table: the hashes of the [R, C] view.
        against: R * C elements to take the product with, in the same read where that can be.

    Returns:
        The product with `against` and the gradient's own squared norm, float64 [2], where they came out of that read.
    """
    rows, cols = len(table.rows), len(table.cols)
    matrix = gradient.detach().reshape(rows, cols)
    if fused.available(total, matrix):
        fused.add_matrices(total.unsqueeze(0), matrix.unsqueeze(0), table)
        return None
    fast = total.device.type == "cpu" and compiled.available()
    if fast and matrix.dtype in _NATIVE:
        other = against if against is not None and against.dtype == matrix.dtype else None
        return _add_compiled(total, matrix, table, None if other is None else other.detach().reshape(rows, cols))
    step = max(1, _BLOCK // max(1, cols))
    for start in range(0, rows, step):
        part = table.block(slice(start, start + step), slice(None))
        block = matrix[start : start + step].to(total.dtype)
        if fast:
            _add_compiled(total, block, part)
        else:
            _add_torch(total, block, part)
    return None


def _add_compiled(total: Tensor, matrix: Tensor, table: HashTable, against: Tensor | None = None) -> Tensor | None:
    wide = np.zeros((1, 2 * len(total)), total.numpy().dtype)
    other = None if against is None else against.contiguous().numpy()
    found = compiled.add_matrices(wide, matrix.contiguous().unsqueeze(0).numpy(), table, against=other)
    total += torch.from_numpy(wide).reshape(2, -1).sum(0)
    return None if found is None else torch.from_numpy(found[0])


def _add_torch(total: Tensor, matrix: Tensor, table: HashTable) -> None:
    signed = matrix * table.rows.signs[:, None] * table.cols.signs
    buckets = (table.rows.buckets[:, None] + table.cols.buckets) % table.dim
    total.index_add_(0, buckets.flatten(), signed.flatten())
