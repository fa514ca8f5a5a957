"""Sketches in one byte a number: whole numbers from -127 to 127, and a scale for each row.

A number is `int8 * scale`, where `scale = max|row| / 127`, so no number is further than half a scale from what it stands
for. -128 is no number: it stands for NaN or Inf, and its row is left out as a row with NaN is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradalign.errors import InvalidValue
from gradalign.wire.checks import check_numbers

__all__ = ["LARGEST_SCALE", "NO_NUMBER", "check_scales", "dequantised", "quantised_array", "quantised_tensor"]

Float32s = npt.NDArray[np.float32]
Int8s = npt.NDArray[np.int8]

MOST = np.float32(127)
NO_NUMBER = -128
LARGEST_SCALE = float(np.nextafter(np.finfo(np.float32).max / MOST, np.float32(np.inf)))
"""Of a row that holds the largest float32."""
# A block is divided, rounded and cast while it is in the cache: 1 MiB of float32.
_BLOCK_ELEMENTS = 1 << 18
_CUDA_BLOCK_ELEMENTS = 1 << 24


def check_scales(value: Any, *, count: int) -> tuple[float, ...]:
    """A scale for each of `count` rows, from 0 to LARGEST_SCALE, rounded to float32.

    Raises:
        InvalidValue: naming the first that is wrong.
    """
    values = value.tolist() if hasattr(value, "tolist") else value
    if not _plain(values, count):
        try:
            values = check_numbers("scales", values, count=count, low=0.0, high=LARGEST_SCALE)
        except InvalidValue as error:
            raise InvalidValue(
                f"{error} A row's scale is max|row| / 127, and 0 for a row of zeros; of a row with NaN or Inf send "
                f"{NO_NUMBER} for every number, and scale 0.",
                param=error.param,
            ) from None
    return tuple(np.array(values, dtype=np.float32).tolist())


def _plain(values: Any, count: int) -> bool:
    """Whether they are right, and of the kind that almost everyone sends: seen at once, not one by one."""
    if type(values) not in (list, tuple) or len(values) != count or set(map(type, values)) != {float}:
        return False
    return math.isfinite(sum(values)) and min(values) >= 0 and max(values) <= LARGEST_SCALE


def scales_of(largest: Float32s) -> Float32s:
    """The scales of rows whose numbers reach up to `largest`, [rows]: a 127th of it, rounded up where 127 would fall short.

    Without that a number of a row near the smallest float32 could be more than 127 scales.
    """
    scales = largest / MOST
    short = scales.astype(np.float64) * 127.0 < largest
    return np.where(short, np.nextafter(scales, np.float32(np.inf)), scales).astype(np.float32)


def _blocks(rows: int, dim: int, elements: int) -> Iterator[slice]:
    step = max(1, elements // dim)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def quantised_array(rows: npt.NDArray[np.floating]) -> tuple[Int8s, Float32s]:
    """Whole numbers [rows, dim] and scales [rows] of an array; beside them it takes 1 MiB.

    Args:
        rows: [rows, dim], of any floating dtype.
    """
    count, dim = rows.shape
    whole, scales = np.empty((count, dim), np.int8), np.zeros(count, np.float32)
    buffer = np.empty((max(1, min(count, _BLOCK_ELEMENTS // dim)), dim), np.float32)
    for place in _blocks(count, dim, _BLOCK_ELEMENTS):
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, as on the float wire
            block = rows[place].astype(np.float32, copy=False)
        largest = np.maximum(block.max(axis=1), -block.min(axis=1))
        finite = np.isfinite(largest)
        scales[place][finite] = scales_of(largest[finite])
        quotients = np.divide(block, _divisors(scales[place])[:, None], out=buffer[: len(block)])
        quotients[~finite] = NO_NUMBER
        whole[place] = np.rint(quotients, out=quotients)
    return whole, scales


def quantised_tensor(rows: Any) -> tuple[Int8s, Float32s]:
    """As `quantised_array`, of a torch tensor on any device: what leaves the device is one byte a number."""
    count, dim = rows.shape
    largest = rows.amax(dim=1).maximum(-rows.amin(dim=1)).float().cpu().numpy()
    finite = np.isfinite(largest)
    scales = np.zeros(count, np.float32)
    scales[finite] = scales_of(largest[finite])
    divisors = rows.new_tensor(_divisors(scales).tolist(), dtype=rows.new_empty(0).float().dtype)
    whole = rows.new_empty(rows.shape, dtype=rows.new_empty(0).char().dtype)
    for place in _blocks(count, dim, _CUDA_BLOCK_ELEMENTS if rows.is_cuda else _BLOCK_ELEMENTS):
        whole[place] = (rows[place].float() / divisors[place, None]).round_().char()
    found: Int8s = whole.cpu().numpy()
    found[~finite] = NO_NUMBER
    return found, scales


def _divisors(scales: Float32s) -> Float32s:
    return np.where(scales > 0, scales, np.float32(1))


def dequantised(whole: Int8s, scales: Sequence[float]) -> Float32s:
    """The numbers that they stand for, float32 [rows, dim]; NaN for -128."""
    with np.errstate(over="ignore"):
        rows = whole.astype(np.float32) * np.array(scales, dtype=np.float32)[:, None]
    rows[whole == NO_NUMBER] = np.nan
    return rows
