"""Products of sketches with a vector, and their norms: one pass over the rows, block by block, in float32.

Rows are independent, so a pool may lie in any number of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradalign import SketchMatrix
from gradalign.wire.scales import NO_NUMBER

__all__ = ["Products", "SketchRows", "gram", "products", "weighted_sum"]

Floats = npt.NDArray[np.float64]

# A block is converted to float32 and read again from the cache: 1 MiB.
_CPU_BLOCK_ELEMENTS = 1 << 18
_CUDA_BLOCK_ELEMENTS = 1 << 22
_ROW_STEP = 16
_GRAM_ROWS, _GRAM_COLUMNS = 128, 2048
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}
# Outside of these bounds the squares of a float32 row have lost digits, or overflowed: such rows are taken in float64.
_SQUARE_LOW, _SQUARE_HIGH = 1e-24, 1e36


@dataclass(frozen=True)
class SketchRows:
    """Rows of any number of matrices of one `dim`, [n, dim], as if they were one.

    Attributes:
        matrices: in the order of the rows; not copied.
    """

    matrices: Sequence[SketchMatrix]

    def __post_init__(self) -> None:
        assert self.matrices
        assert len({matrix.dim for matrix in self.matrices}) == 1

    def __len__(self) -> int:
        return sum(matrix.rows for matrix in self.matrices)

    @property
    def dim(self) -> int:
        """Buckets of a row."""
        return self.matrices[0].dim

    @property
    def scales(self) -> Floats:
        """What the rows of `blocks` have to be multiplied by, [n]: 1 but for int8."""
        return np.concatenate([np.ones(m.rows) if m.scales is None else np.array(m.scales) for m in self.matrices])

    def blocks(self, most: int) -> Iterator[tuple[slice, Tensor]]:
        """Consecutive rows: their place, and a CPU tensor [rows, dim] in the wire's dtype, without `scales`.

        None of them crosses a multiple of `most`, or the end of a matrix. A tensor is good until the next one is asked for.
        """
        done = 0
        for matrix in self.matrices:
            for start, block in _blocks(matrix, most, most - done % most):
                yield slice(done + start, done + start + len(block)), block
            done += matrix.rows


def _blocks(matrix: SketchMatrix, most: int, first: int) -> Iterator[tuple[int, Tensor]]:
    dtype = _DTYPES[matrix.dtype]
    row = matrix.dim * dtype.itemsize
    data = np.frombuffer(matrix.data, np.uint8)
    # torch takes misaligned memory without a word, and warns of memory it may not write: such blocks are copied.
    copied = matrix.data.readonly or data.ctypes.data % dtype.itemsize != 0
    staging = np.empty(min(most, matrix.rows) * row, np.uint8) if copied else data
    start = 0
    while start < matrix.rows:
        stop = min(start + (most if start else first), matrix.rows)
        part = data[start * row : stop * row]
        if copied:
            staging[: len(part)] = part
            part = staging[: len(part)]
        yield start, torch.from_numpy(part).view(dtype).view(stop - start, matrix.dim)
        start = stop


@dataclass(frozen=True)
class Products:
    """What a pass over n sketches gives.

    Attributes:
        dots: products with the vector, [n]; zeros where none was given.
        norms: norms of the rows, [n].
        finite: [n]; False for a row with NaN or Inf, whose dot and norm are 0.
    """

    dots: Floats
    norms: Floats
    finite: npt.NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[Products]) -> Products:
        """Parts of one request, in the order of its rows, as one."""
        return cls(*map(np.concatenate, zip(*(part._columns for part in parts), strict=True)))

    def split(self, counts: Sequence[int]) -> list[Products]:
        """The reverse of `joined`: parts of so many rows."""
        ends = np.cumsum(counts)[:-1]
        return [Products(*part) for part in zip(*(np.split(column, ends) for column in self._columns), strict=True)]

    @property
    def _columns(self) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        return self.dots, self.norms, self.finite

    @property
    def signal(self) -> npt.NDArray[np.bool_]:
        """Finite rows that are not zero, [n]."""
        return self.finite & (self.norms > 0)

    def cosines(self) -> Floats:
        """Dots over norms, in [-1, 1], for a unit vector; 0 for a row without a signal; [n]."""
        signal = self.signal
        quotient = np.divide(self.dots, self.norms, out=np.zeros_like(self.dots), where=signal)
        return np.clip(quotient, -1.0, 1.0)


def products(rows: SketchRows, vector: Tensor | None, device: torch.device) -> Products:
    """Products of every row with a vector, and the norms of the rows.

    A row's result depends neither on where it stands nor on its neighbours: all blocks of a `dim` have the same shape, and
    one is filled from as many matrices as it takes.

    Args:
        rows: [n, dim].
        vector: float32 [dim], or None for norms alone.
        device: to compute on.
    """
    count = len(rows)
    dots, squares = torch.zeros(count, device=device), torch.zeros(count, device=device)
    most = _block_rows(rows.dim, device)
    buffer = torch.zeros(most, rows.dim, dtype=torch.float32, device=device)
    there = None if vector is None else vector.to(device, torch.float32)
    marked = torch.zeros(count, dtype=torch.bool, device=device)
    for place, block in rows.blocks(most):
        filled = place.start % most
        # Copied as it is and converted there: fewer bytes on the way to a GPU.
        moved = block.to(device, non_blocking=True)
        buffer[filled : filled + len(block)].copy_(moved)
        if block.dtype == torch.int8:
            marked[place] = moved.amin(dim=1) == NO_NUMBER
        if place.stop % most and place.stop < count:
            continue
        done = slice(place.start - filled, place.stop)
        size = done.stop - done.start
        squares[done] = torch.linalg.vector_norm(buffer, dim=1)[:size].square()
        if there is not None:
            dots[done] = (buffer @ there)[:size]
    dots, squares = dots.cpu(), squares.cpu()
    # A row of int8 is one number times a vector: so are its product and its norm.
    scales = rows.scales
    norms = squares.double().sqrt().numpy() * scales
    result = Products(dots.double().numpy() * scales, norms, np.ones(count, dtype=bool))
    ordinary = (squares > _SQUARE_LOW) & (squares < _SQUARE_HIGH) & torch.isfinite(dots) & ~marked.cpu()
    if not ordinary.all():
        _correct(result, rows, vector, (~ordinary).numpy(), most)
    return result


def _correct(result: Products, rows: SketchRows, vector: Tensor | None, odd: npt.NDArray[np.bool_], most: int) -> None:
    """Take rows that are zero, tiny, huge or not finite again, in float64."""
    exact = None if vector is None else vector.double().cpu()
    scales = torch.from_numpy(rows.scales)
    for place, block in rows.blocks(most):
        chosen = np.flatnonzero(odd[place])
        if not chosen.size:
            continue
        picked = block[torch.from_numpy(chosen)]
        values = picked.double() * scales[place][chosen, None]
        finite = (picked != NO_NUMBER if picked.dtype == torch.int8 else torch.isfinite(values)).all(dim=1)
        values[~finite] = 0.0
        where = chosen + place.start
        result.finite[where] = finite.numpy()
        result.norms[where] = torch.linalg.vector_norm(values, dim=1).numpy()
        result.dots[where] = 0.0 if exact is None else (values @ exact).numpy()


def _block_rows(dim: int, device: torch.device) -> int:
    most = _CPU_BLOCK_ELEMENTS if device.type == "cpu" else _CUDA_BLOCK_ELEMENTS
    return -(-max(1, most // dim) // _ROW_STEP) * _ROW_STEP


def weighted_sum(rows: SketchRows, weights: Floats, device: torch.device) -> Tensor:
    """Sum of weight * row, float32 [dim] on the CPU; rows of weight 0 may hold anything.

    Summed in float64, so that the order of the rows and the size of the blocks leave no trace in the float32.

    Args:
        rows: [n, dim].
        weights: [n].
        device: to compute on.
    """
    total = torch.zeros(rows.dim, dtype=torch.float64, device=device)
    factors = torch.from_numpy(weights * rows.scales)
    for place, block in rows.blocks(_block_rows(rows.dim, device)):
        weight = factors[place]
        used = weight != 0
        # The weights may be as small as the rows are large: their product, not the rows, must fit float32.
        scaled = block[used].to(device).to(torch.float64) * weight[used].to(device)[:, None]
        total += scaled.sum(dim=0)
    return total.float().cpu()


def gram(rows: SketchRows, scale: Floats, device: torch.device) -> Floats:
    """Products of scaled rows with one another, [n, n]; rows of scale 0 count as zero.

    It walks over the columns, so it holds [n, n] and [n, 2048] floats and never all rows in float32.

    Args:
        rows: [n, dim].
        scale: [n]; the scaled rows must fit float32.
        device: to compute on.
    """
    count = len(rows)
    total = torch.zeros(count, count, dtype=torch.float32, device=device)
    factors = torch.from_numpy(scale * rows.scales)
    for start in range(0, rows.dim, _GRAM_COLUMNS):
        columns = torch.zeros(count, min(_GRAM_COLUMNS, rows.dim - start), dtype=torch.float32, device=device)
        for place, block in rows.blocks(_GRAM_ROWS):
            used = factors[place] != 0
            part = block[:, start : start + _GRAM_COLUMNS].double() * factors[place, None]
            columns[place] = torch.where(used[:, None], part, 0.0).to(device, torch.float32)
        total += columns @ columns.T
    return total.double().cpu().numpy()
