"""Numbers of files as text: a finite integral float is the integer, and no number is written with an exponent.

pandas turns a column of integers with a gap into floats, and Python writes small and large floats as `1e-05` and `1e+16`,
which mathematics reads as e - 5 and e + 16.
"""

from __future__ import annotations

import math
import numbers
from decimal import Decimal
from typing import Any

__all__ = ["as_integer", "as_number", "counted", "numeral"]

EXACT = 2**53  # up to which every integer is a float


def as_number(value: Any) -> int | float | Decimal | None:
    """The Python number that a value is, numpy's scalars included; None for what is none, a bool too."""
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item() if getattr(value, "ndim", 0) == 0 else None
    if isinstance(value, bool):
        return None
    if isinstance(value, (float, Decimal)):
        return value
    return int(value) if isinstance(value, numbers.Integral) else None


def as_integer(value: Any) -> int | None:
    """The integer that a number is: 5 for 5, 5.0 and Decimal("5.00"); None for all else.

    Floats beyond 2**53 are none: which integer was meant, they do not say any more.
    """
    number = as_number(value)
    if isinstance(number, (float, Decimal)):
        return int(number) if math.isfinite(number) and -EXACT <= number <= EXACT and number == int(number) else None
    return number


def numeral(number: float | Decimal) -> str:
    """A finite number in digits: `0.00001` for 1e-05, `5` for 5.0, `2.5` for Decimal("2.50").

    Raises:
        ValueError: it is NaN or an infinity.
    """
    if isinstance(number, int):
        return str(number)
    exact = number if isinstance(number, Decimal) else Decimal(repr(float(number)))
    if not exact.is_finite():
        raise ValueError(f"{number} has no digits; expected a finite number.")
    text = f"{exact:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def counted(number: int, one: str, many: str = "") -> str:
    """`1 round`, `2 rounds`; `many` where the plural is not `one` and an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
