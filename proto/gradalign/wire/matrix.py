"""Sketch matrices as the wire carries them: row-major, little-endian, one row per problem."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradalign.errors import InvalidValue
from gradalign.wire.checks import check_one_of, check_table, shown
from gradalign.wire.scales import NO_NUMBER, check_scales, dequantised, quantised_array, quantised_tensor

__all__ = ["DTYPES", "ITEMSIZE", "SENT_DTYPES", "SketchMatrix"]

DTYPES = ("float16", "bfloat16", "float32", "int8")
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}
SENT_DTYPES = ("float32", "int8")
"""Into which a client turns sketches where it is told to."""


@dataclass(frozen=True, slots=True)
class SketchMatrix:
    """Sketches [rows, dim] as little-endian bytes.

    Attributes:
        data: the bytes, row-major, `rows * dim * itemsize` of them; not copied.
        rows: number of problems.
        dim: number of buckets.
        dtype: `float16`, `bfloat16`, `float32` or `int8`.
        scales: of `int8`, one a row, as float32: a number is `int8 * scale`, and -128 stands for NaN or Inf. None of the
            other dtypes.
    """

    data: memoryview
    rows: int
    dim: int
    dtype: str
    scales: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_one_of("dtype", self.dtype, DTYPES)
        self._check_scales()
        expected = self.rows * self.dim * ITEMSIZE[self.dtype]
        if self.data.nbytes != expected:
            raise InvalidValue(
                f"the sketches hold {self.data.nbytes} bytes; expected {expected} = {self.rows} problem_ids x "
                f"{self.dim} dim x {ITEMSIZE[self.dtype]} bytes of {self.dtype}. Send row i for problem i, all rows.",
                param="sketches",
            )

    def _check_scales(self) -> None:
        if self.dtype == "int8":
            if self.scales is None:
                raise InvalidValue(
                    f"scales is missing; expected with dtype int8 a list of {self.rows} numbers, the max|row| / 127 of each "
                    "row. Send them in the header, or sketches of another dtype.",
                    param="scales",
                )
            object.__setattr__(self, "scales", check_scales(self.scales, count=self.rows))
        elif self.scales is not None:
            raise InvalidValue(
                f"scales was sent with dtype {self.dtype}, and goes with int8 only; leave it out, or send int8.",
                param="scales",
            )

    def part(self, rows: slice) -> SketchMatrix:
        """Some consecutive rows, not copied."""
        start, stop, _ = rows.indices(self.rows)
        size = self.dim * ITEMSIZE[self.dtype]
        scales = None if self.scales is None else self.scales[start:stop]
        return SketchMatrix(self.data[start * size : stop * size], stop - start, self.dim, self.dtype, scales)

    @classmethod
    def of(cls, sketches: Any, dtype: str | None = None) -> SketchMatrix:
        """The wire's bytes of a numpy array, a torch tensor (any device) or nested lists, [problems, dim].

        Args:
            sketches: numbers. An array of int8 holds plain numbers, as any other.
            dtype: `float32` or `int8` to turn them into that. None: float16, bfloat16 and float32 go as they are, anything
                else as float32; a contiguous CPU array is then not copied.

        Raises:
            InvalidValue: not a matrix, not of numbers, or another dtype.
        """
        if dtype is not None:
            check_one_of("dtype", dtype, SENT_DTYPES)
        if isinstance(sketches, cls):
            return sketches if dtype in (None, sketches.dtype) else cls.of(sketches.numpy(), dtype)
        if isinstance(sketches, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in sketches):
            sketches = check_table("sketches", sketches)
        if dtype == "int8":
            return cls._quantised(sketches)
        array, found = _from_torch(sketches) if hasattr(sketches, "detach") else _from_numpy(sketches)
        _check_shape(array.shape)
        if dtype not in (None, found):
            return cls.of(_as_float32(cls._flat(array, found).numpy()))
        return cls._flat(array, found)

    @classmethod
    def _flat(cls, array: npt.NDArray[Any], dtype: str, scales: tuple[float, ...] | None = None) -> SketchMatrix:
        little = array if sys.byteorder == "little" else array.byteswap()
        flat = memoryview(np.ascontiguousarray(little).data).cast("B")
        return cls(flat, array.shape[0], array.shape[1], dtype, scales)

    @classmethod
    def _quantised(cls, sketches: Any) -> SketchMatrix:
        if hasattr(sketches, "detach"):
            tensor = _real(sketches)
            _check_shape(tensor.shape)
            whole, scales = quantised_tensor(tensor if tensor.is_floating_point() else tensor.float())
        else:
            array, _ = _from_numpy(sketches)
            _check_shape(array.shape)
            whole, scales = quantised_array(array)
        return cls._flat(whole, "int8", tuple(scales.tolist()))

    @classmethod
    def of_json(cls, rows: Any, scales: Any = None) -> SketchMatrix:
        """Sketches from rows of JSON: as float32 where there are no scales, else as int8.

        Infinity and NaN among floats are what a gradient that overflowed holds.

        Raises:
            InvalidValue: naming the first place that holds no number, or one that float32 or int8 cannot hold.
        """
        if not isinstance(rows, list):
            raise InvalidValue(
                f"the sketches are {shown(rows)}; expected a list of rows of numbers, one for each problem id.",
                param="sketches",
            )
        table = check_table("sketches", rows)
        if scales is not None:
            _check_shape(table.shape)
            return cls._flat(_as_int8(table, rows), "int8", scales)
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
        """The rows, [rows, dim]: a view for float16 and float32, a float32 copy for bfloat16 and int8."""
        if self.scales is not None:
            return dequantised(np.frombuffer(self.data, dtype=np.int8).reshape(self.rows, self.dim), self.scales)
        if self.dtype == "bfloat16":
            bits = np.frombuffer(self.data, dtype="<u2").astype(np.uint32) << np.uint32(16)
            return bits.view(np.float32).reshape(self.rows, self.dim)
        kind = "<f2" if self.dtype == "float16" else "<f4"
        return np.frombuffer(self.data, dtype=kind).reshape(self.rows, self.dim)


def _check_shape(shape: Sequence[int]) -> None:
    if len(shape) != 2 or 0 in shape:
        raise InvalidValue(
            f"the sketches have shape {list(shape)}; expected [problems, dim], one row a problem (stack single rows).",
            param="sketches",
        )


def _as_int8(table: npt.NDArray[np.float64], rows: list[Any]) -> npt.NDArray[np.int8]:
    wrong = np.argwhere(~((table >= NO_NUMBER) & (table <= 127) & (table == np.rint(table))))
    if wrong.size:
        i, j = wrong[0].tolist()
        raise InvalidValue(
            f"sketches[{i}][{j}] is {shown(rows[i][j])}; expected with dtype int8 a whole number from -127 to 127, or -128 "
            "for NaN or Inf. Divide each row by its scale and round.",
            param="sketches",
        )
    return table.astype(np.int8)


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


def _real(tensor: Any) -> Any:
    if tensor.is_complex() or str(tensor.dtype) == "torch.bool":
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise InvalidValue(f"the sketches are a tensor of {dtype}; expected real numbers.", param="sketches")
    return tensor.detach()


def _from_torch(tensor: Any) -> tuple[npt.NDArray[Any], str]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    tensor = _real(tensor).cpu().contiguous()
    if dtype == "bfloat16":
        bits = tensor.view(tensor.new_empty(0).half().dtype)
        return bits.numpy().view(np.uint16), dtype
    if dtype in ("float16", "float32"):
        return tensor.numpy(), dtype
    return tensor.float().numpy(), "float32"
