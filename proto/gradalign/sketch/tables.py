"""The hashes of one parameter as tensors, O(R + C) of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradalign.countsketch import axis_hashes, matrix_shape

__all__ = ["HashTable"]

_BLOCK = 1 << 20


@dataclass(frozen=True)
class HashTable:
    """Buckets and signs of the axes of a parameter's matrix view [R, C].

    Attributes:
        row_buckets: int64 [R].
        row_signs: float [R], -1 or +1.
        col_buckets: int64 [C].
        col_signs: float [C].
        dim: number of buckets.
    """

    row_buckets: Tensor
    row_signs: Tensor
    col_buckets: Tensor
    col_signs: Tensor
    dim: int

    @classmethod
    def of(
        cls, name: str, shape: tuple[int, ...], *, dim: int, seed: int, device: torch.device, dtype: torch.dtype
    ) -> HashTable:
        """The table of parameter `name` (canonical) of a global shape."""
        rows, cols = matrix_shape(shape)
        columns = []
        for side, count in (("row", rows), ("col", cols)):
            buckets, signs = axis_hashes(seed, name, side, count, dim)  # type: ignore[arg-type]
            columns += [torch.from_numpy(buckets).to(device), torch.from_numpy(signs).to(device, dtype)]
        return cls(*columns, dim=dim)

    def add_to(self, total: Tensor, gradient: Tensor) -> None:
        """Add the sketch of a gradient (any shape of R*C elements) to `total` [dim], in the dtype of `total`."""
        rows, cols = len(self.row_buckets), len(self.col_buckets)
        matrix = gradient.reshape(rows, cols)
        step = max(1, _BLOCK // cols)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            signed = matrix[part].to(total.dtype) * self.row_signs[part, None] * self.col_signs
            buckets = (self.row_buckets[part, None] + self.col_buckets) % self.dim
            total.index_add_(0, buckets.flatten(), signed.flatten())
