"""Sketch matrices as the wire carries them: row-major, little-endian, one row per problem."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradalign.errors import InvalidValue
from gradalign.wire.checks import check_one_of, check_table, shown

__all__ = ["DTYPES", "ITEMSIZE", "SketchMatrix"]

DTYPES = ("float16", "bfloat16", "float32")
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class SketchMatrix:
    """Sketches [rows, dim] as little-endian bytes.

    Attributes:
        data: the bytes, row-major, `rows * dim * itemsize` of them; not copied.
        rows: number of problems.
        dim: number of buckets.
        dtype: `float16`, `bfloat16` or `float32`.
    """

    data: memoryview
    rows: int
    dim: int
    dtype: str

    def __post_init__(self) -> None:
        check_one_of("dtype", self.dtype, DTYPES)
        expected = self.rows * self.dim * ITEMSIZE[self.dtype]
        if self.data.nbytes != expected:
            raise InvalidValue(
                f"the sketches hold {self.data.nbytes} bytes; expected {expected} = {self.rows} problem_ids x "
                f"{self.dim} dim x {ITEMSIZE[self.dtype]} bytes of {self.dtype}. Send row i for problem i, all rows.",
                param="sketches",
            )

    def part(self, rows: slice) -> SketchMatrix:
        """Some consecutive rows, not copied."""
        start, stop, _ = rows.indices(self.rows)
        size = self.dim * ITEMSIZE[self.dtype]
        return SketchMatrix(self.data[start * size : stop * size], stop - start, self.dim, self.dtype)

    @classmethod
    def of(cls, sketches: Any) -> SketchMatrix:
        """The wire's bytes of a numpy array, a torch tensor (any device) or nested lists, [problems, dim].

        float16, bfloat16 and float32 go as they are, anything else as float32. A contiguous CPU array is not copied.

        Raises:
            InvalidValue: not a matrix, or not of numbers.
        """
        if isinstance(sketches, cls):
            return sketches
        if isinstance(sketches, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in sketches):
            sketches = check_table("sketches", sketches)
        array, dtype = _from_torch(sketches) if hasattr(sketches, "detach") else _from_numpy(sketches)
        if array.ndim != 2 or 0 in array.shape:
            raise InvalidValue(
                f"the sketches have shape {list(array.shape)}; expected [problems, dim], one row a problem "
                "(stack single rows).",
                param="sketches",
            )
        little = array if sys.byteorder == "little" else array.byteswap()
        flat = memoryview(np.ascontiguousarray(little).data).cast("B")
        return cls(flat, array.shape[0], array.shape[1], dtype)

    @classmethod
    def of_json(cls, rows: Any) -> SketchMatrix:
        """Sketches as float32 from rows of JSON, where Infinity and NaN are what a gradient that overflowed holds.

        Raises:
            InvalidValue: naming the first place that holds no number, or one that float32 cannot hold.
        """
        if not isinstance(rows, list):
            raise InvalidValue(
                f"the sketches are {shown(rows)}; expected a list of rows of numbers, one for each problem id.",
                param="sketches",
            )
        table = check_table("sketches", rows)
        # A number beyond float64 is read as infinite; Infinity itself comes as a type of its own.
        for i, j in np.argwhere(np.isinf(_as_float32(table))):
            if type(rows[i][j]) in (int, float):
                raise InvalidValue(
                    f"sketches[{i}][{j}] is {shown(rows[i][j])}; expected a number within float32, +-3.4e38. Scale all "
                    "gradients of the run by one factor.",
                    param="sketches",
                )
        return cls.of(table)

    def numpy(self) -> npt.NDArray[np.floating]:
        """The rows, [rows, dim]: a view for float16 and float32, a float32 copy for bfloat16."""
        if self.dtype == "bfloat16":
            bits = np.frombuffer(self.data, dtype="<u2").astype(np.uint32) << np.uint32(16)
            return bits.view(np.float32).reshape(self.rows, self.dim)
        kind = "<f2" if self.dtype == "float16" else "<f4"
        return np.frombuffer(self.data, dtype=kind).reshape(self.rows, self.dim)


def _as_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    # What float32 cannot hold becomes infinite, and its row is left out like any that overflowed.
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _from_numpy(value: Any) -> tuple[npt.NDArray[Any], str]:
    try:
        array = np.asarray(value)
        if array.dtype in (np.float16, np.float32):
            return array, str(array.dtype)
        if array.dtype.kind not in "fiuO":
            raise TypeError(f"elements of type {array.dtype}")
        return _as_float32(array), "float32"
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidValue(
            f"the sketches are {shown(value)} ({error}); expected a numeric array [problems, dim].", param="sketches"
        ) from None


def _from_torch(tensor: Any) -> tuple[npt.NDArray[Any], str]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype == "bool" or tensor.is_complex():
        raise InvalidValue(f"the sketches are a tensor of {dtype}; expected real numbers.", param="sketches")
    tensor = tensor.detach().cpu().contiguous()
    if dtype == "bfloat16":
        bits = tensor.view(tensor.new_empty(0).half().dtype)
        return bits.numpy().view(np.uint16), dtype
    if dtype in ITEMSIZE:
        return tensor.numpy(), dtype
    return tensor.float().numpy(), "float32"
