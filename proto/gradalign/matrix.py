"""Sketch matrices as the wire carries them: row-major, little-endian, one row per problem."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradalign.checks import check_one_of, shown
from gradalign.errors import InvalidValue

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
        """
        if isinstance(sketches, cls):
            return sketches
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

    def numpy(self) -> npt.NDArray[np.floating]:
        """The rows, [rows, dim]: a view for float16 and float32, a float32 copy for bfloat16."""
        if self.dtype == "bfloat16":
            bits = np.frombuffer(self.data, dtype="<u2").astype(np.uint32) << np.uint32(16)
            return bits.view(np.float32).reshape(self.rows, self.dim)
        kind = "<f2" if self.dtype == "float16" else "<f4"
        return np.frombuffer(self.data, dtype=kind).reshape(self.rows, self.dim)


def _from_numpy(value: Any) -> tuple[npt.NDArray[Any], str]:
    try:
        array = np.asarray(value)
        if array.dtype in (np.float16, np.float32):
            return array, str(array.dtype)
        return array.astype(np.float32), "float32"
    except (TypeError, ValueError) as error:
        raise InvalidValue(
            f"the sketches are {shown(value)} ({error}); expected a numeric array [problems, dim].", param="sketches"
        ) from None


def _from_torch(tensor: Any) -> tuple[npt.NDArray[Any], str]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    tensor = tensor.detach().cpu().contiguous()
    if dtype == "bfloat16":
        bits = tensor.view(tensor.new_empty(0).half().dtype)
        return bits.numpy().view(np.uint16), dtype
    if dtype in ITEMSIZE:
        return tensor.numpy(), dtype
    return tensor.float().numpy(), "float32"
