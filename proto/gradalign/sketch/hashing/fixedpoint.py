"""Sketches summed in fixed point: integers add in any order, on any number of threads and ranks, to the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

from gradalign.errors import SketchError
from gradalign.sketch.kernels import cpu as compiled
from gradalign.sketch.kernels.tables import HashTable

__all__ = ["QUANTUM", "add_fixed", "check_fixed", "from_fixed"]

QUANTUM = 2.0**-40
"""The unit of the sums, 9e-13; an int64 then holds up to 8.4 million."""

_BLOCK = 1 << 20


def add_fixed(buckets: Tensor, matrices: Tensor, table: HashTable) -> Tensor:
    """Add the sketches of matrices, each element rounded to a multiple of `QUANTUM`.

    Args:
        buckets: int64 [n, dim], in units of `QUANTUM`.
        matrices: [n, R, C] of any floating dtype.
        table: the hashes of such a matrix.

    Returns:
        The sum of the absolute values of each matrix, float64 [n]; see `check_fixed`.
    """
    bulk = torch.zeros(len(matrices), dtype=torch.float64, device=matrices.device)
    if matrices.numel() == 0:
        return bulk
    if buckets.device.type == "cpu" and compiled.available():
        native = matrices if matrices.dtype in (torch.float32, torch.float64) else matrices.float()
        compiled.add_fixed(buckets.numpy(), native.contiguous().numpy(), table, bulk.numpy(), 1 / QUANTUM)
        return bulk
    step = max(1, _BLOCK // max(1, len(table.cols)))
    for each, matrix in enumerate(matrices):
        for start in range(0, len(table.rows), step):
            part = table.block(slice(start, start + step), slice(None))
            values = matrix[start : start + step].double()
            bulk[each] += values.abs().sum()
            signed = (values * (part.rows.signs[:, None] * part.cols.signs) / QUANTUM).round().long()
            place = (part.rows.buckets[:, None] + part.cols.buckets) % table.dim
            buckets[each].index_add_(0, place.flatten(), signed.flatten())
    return bulk


def check_fixed(bulk: Tensor) -> None:
    """Raise SketchError where a bucket may have overflowed; `bulk` is what `add_fixed` gave, in all."""
    largest = float(bulk.max()) if bulk.numel() else 0.0
    if largest >= 2.0**62 * QUANTUM:
        raise SketchError(
            f"the gradient is too large for reproducible=True: its absolute values add up to {largest:.3g}, and sums in "
            f"fixed point hold {2.0**62 * QUANTUM:.3g}. Scale the loss down, or clip the gradients."
        )


def from_fixed(buckets: Tensor, dtype: torch.dtype) -> Tensor:
    """The sums as floating-point numbers."""
    return (buckets.double() * QUANTUM).to(dtype)
