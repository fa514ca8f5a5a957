"""The separable CountSketch of layout 1, in numpy: the reference that every other implementation must equal.

A parameter's gradient is viewed as a matrix [R, C]. Element (r, c) is added to bucket
`(h_row(r) + h_col(c)) mod dim` with sign `s_row(r) * s_col(c)`. The hashes depend on (seed, parameter name, global
index) alone, so the sketch is linear and the same on any device and under any sharding.

Source: Pham and Pagh, "Fast and Scalable Polynomial Kernels via Explicit Feature Maps" (KDD 2013), for CountSketches
of outer products; SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) for the hash. The layout itself is ours:
`proto/README.md`, "The sketch".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["axis_hashes", "axis_key", "matrix_shape", "sketch_gradients", "sketch_matrix", "splitmix64"]

Side: TypeAlias = Literal["row", "col"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 of each element, modulo 2**64; uint64 of the shape given."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def axis_key(seed: int, name: str, side: Side) -> int:
    """The 64-bit key of one axis of one parameter."""
    digest = hashlib.sha256(f"gradalign-sketch-1|{seed}|{name}|{side}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def axis_hashes(
    seed: int, name: str, side: Side, count: int, dim: int, *, start: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """Buckets and signs of `count` consecutive global indices of one axis.

    Args:
        seed: the projection's seed.
        name: the parameter's canonical name.
        side: which axis of the matrix view.
        count: how many indices.
        dim: number of buckets.
        start: the first global index, for a shard of the axis.

    Returns:
        Buckets in [0, dim), int64 [count], and signs, -1 or +1, int8 [count].
    """
    key = np.uint64(axis_key(seed, name, side))
    u = splitmix64(key + np.arange(start, start + count, dtype=np.uint64))
    buckets = ((u >> np.uint64(1)) % np.uint64(dim)).astype(np.int64)
    signs = (1 - 2 * (u & np.uint64(1)).astype(np.int8)).astype(np.int8)
    return buckets, signs


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The [R, C] view of a parameter: all axes but the last are folded into R; a vector is one row."""
    if not shape:
        return 1, 1
    return math.prod(shape[:-1]), shape[-1]


def sketch_matrix(gradient: npt.NDArray[np.floating], name: str, *, dim: int, seed: int) -> npt.NDArray[np.float64]:
    """The sketch of one parameter's gradient (any shape), accumulated in float64; [dim]."""
    rows, cols = matrix_shape(gradient.shape)
    row_buckets, row_signs = axis_hashes(seed, name, "row", rows, dim)
    col_buckets, col_signs = axis_hashes(seed, name, "col", cols, dim)
    signed = gradient.reshape(rows, cols).astype(np.float64) * row_signs[:, None] * col_signs[None, :]
    buckets = (row_buckets[:, None] + col_buckets[None, :]) % dim
    return np.bincount(buckets.ravel(), weights=signed.ravel(), minlength=dim).astype(np.float64)


def sketch_gradients(
    gradients: Mapping[str, npt.NDArray[np.floating]], *, dim: int, seed: int
) -> npt.NDArray[np.float64]:
    """The sketch of a whole gradient, by canonical parameter name: the sum of its parameters' sketches; [dim]."""
    total = np.zeros(dim, dtype=np.float64)
    for name, gradient in gradients.items():
        total += sketch_matrix(gradient, name, dim=dim, seed=seed)
    return total
