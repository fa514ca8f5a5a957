"""The hashes of one parameter as tensors, O(R + C) of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gradalign.wire.countsketch import Side, axis_hashes, matrix_shape

__all__ = ["Axis", "HashTable"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Axis:
    """Buckets and signs of one axis of a parameter's matrix view.

    Attributes:
        buckets: int64 [n], in [0, dim).
        signs: float [n], -1 or +1, in the dtype that sketches accumulate in.
        arrays: the buckets as uint32 [n] and the signs in numpy, for the compiled CPU loop; None on other devices.
    """

    buckets: Tensor
    signs: Tensor
    arrays: tuple[Array, Array] | None

    @classmethod
    def of(
        cls, seed: int, name: str, side: Side, count: int, dim: int, *, device: torch.device, dtype: torch.dtype
    ) -> Axis:
        """The hashes of the global indices 0 to count - 1 of one axis of parameter `name`."""
        buckets, signs = axis_hashes(seed, name, side, count, dim)
        ours = torch.from_numpy(signs).to(device, dtype)
        arrays = (buckets.astype(np.uint32), ours.numpy()) if device.type == "cpu" else None
        return cls(torch.from_numpy(buckets).to(device), ours, arrays)

    def __getitem__(self, part: slice) -> Axis:
        arrays = None if self.arrays is None else (self.arrays[0][part], self.arrays[1][part])
        return Axis(self.buckets[part], self.signs[part], arrays)

    def take(self, index: Tensor) -> Axis:
        """The hashes of some indices, LongTensor [n]."""
        where = index.numpy() if self.arrays is not None else None
        arrays = None if self.arrays is None else (self.arrays[0][where], self.arrays[1][where])
        return Axis(self.buckets[index], self.signs[index], arrays)

    def __len__(self) -> int:
        return len(self.buckets)


@dataclass(frozen=True)
class HashTable:
    """The hashes of a parameter's matrix view [R, C], or of a block of it.

    Attributes:
        rows: R hashes.
        cols: C hashes.
        dim: number of buckets.
    """

    rows: Axis
    cols: Axis
    dim: int

    @classmethod
    def of(
        cls, name: str, shape: Iterable[int], *, dim: int, seed: int, device: torch.device, dtype: torch.dtype
    ) -> HashTable:
        """The table of parameter `name` (canonical) of a global shape."""
        rows, cols = matrix_shape(tuple(shape))
        return cls(
            Axis.of(seed, name, "row", rows, dim, device=device, dtype=dtype),
            Axis.of(seed, name, "col", cols, dim, device=device, dtype=dtype),
            dim,
        )

    def block(self, rows: slice, cols: slice) -> HashTable:
        """The table of a block of the matrix, by global rows and columns."""
        return HashTable(self.rows[rows], self.cols[cols], self.dim)
