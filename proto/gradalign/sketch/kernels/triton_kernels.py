# mypy: disable-error-code="untyped-decorator, misc, no-untyped-def, no-untyped-call"
# ruff: noqa: ANN001, ANN202, N803, PLR0917 - triton takes arguments by position, and compiles annotations
"""The sketch on a GPU in one fused kernel: a gradient is read once, and its hashes come from O(R + C) tables.

Each program loads a tile, multiplies it by the signs of its rows and columns in float32, and adds it to the buckets with
relaxed atomics, in one of several copies of them that all fit the L2 cache. Importing this needs triton; the torch path in
`gradalign.sketch.hashing.matrix` gives the same sketch without it, through temporaries of the gradient's size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradalign.sketch.kernels.tables import HashTable

__all__ = ["add_matrices"]

_TILE = 4096
_COPIES = 64
_CACHE = 1 << 22  # bytes of buckets, all copies together, that are sure to stay in the L2 cache
_GRID = 65535  # the most programs along the second axis of a grid


@triton.jit
def _add(
    matrices,
    row_buckets,
    row_signs,
    col_buckets,
    col_signs,
    buckets,
    rows,
    cols,
    dim,
    copies,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    tile, each = tl.program_id(0), tl.program_id(1).to(tl.int64)
    across = tl.cdiv(cols, COLS)
    row = (tile // across) * ROWS + tl.arange(0, ROWS)
    col = (tile % across) * COLS + tl.arange(0, COLS)
    row_in, col_in = row < rows, col < cols
    inside = row_in[:, None] & col_in[None, :]
    at = (each * rows + row.to(tl.int64))[:, None] * cols + col[None, :]
    values = tl.load(matrices + at, mask=inside, other=0.0).to(tl.float32)
    signs = tl.load(row_signs + row, mask=row_in, other=0.0)[:, None]
    signs *= tl.load(col_signs + col, mask=col_in, other=0.0)[None, :]
    place = tl.load(row_buckets + row, mask=row_in, other=0).to(tl.int32)[:, None]
    place += tl.load(col_buckets + col, mask=col_in, other=0).to(tl.int32)[None, :]
    place = tl.where(place >= dim, place - dim, place)
    target = buckets + (each * copies + tile % copies) * dim
    tl.atomic_add(target + place, values * signs, mask=inside, sem="relaxed")


def add_matrices(buckets: Tensor, matrices: Tensor, table: HashTable) -> None:
    """Add the sketches of matrices.

    Args:
        buckets: float32 [n, dim], to add to.
        matrices: [n, R, C], float32, bfloat16 or float16, on the same device.
        table: the hashes of such a matrix, in float32 on that device.
    """
    count, rows, cols = matrices.shape
    if matrices.numel() == 0:
        return
    width = min(1024, triton.next_power_of_2(cols))
    height = _TILE // width
    tiles = triton.cdiv(rows, height) * triton.cdiv(cols, width)
    copies = max(1, min(_COPIES, tiles, _CACHE // (4 * table.dim * count)))
    matrices = matrices.contiguous()
    for first in range(0, count, _GRID):
        part = matrices[first : first + _GRID]
        spread = torch.zeros(len(part), copies, table.dim, dtype=torch.float32, device=buckets.device)
        hashes = table.rows.buckets, table.rows.signs, table.cols.buckets, table.cols.signs
        _add[(tiles, len(part))](part, *hashes, spread, rows, cols, table.dim, copies, ROWS=height, COLS=width)
        buckets[first : first + _GRID] += spread.sum(1)
