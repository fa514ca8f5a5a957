"""Checks on values that cross the wire. Each failure names the parameter, what was given and what would do."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from gradalign.errors import InvalidValue

__all__ = [
    "LARGEST_FEATURE",
    "LARGEST_PRODUCT",
    "MAX_FEATURES",
    "MAX_PRODUCTS",
    "MAX_ROLLOUTS",
    "NAME_PATTERN",
    "check_distinct_ids",
    "check_features",
    "check_flag",
    "check_int",
    "check_length",
    "check_name",
    "check_number",
    "check_numbers",
    "check_one_of",
    "check_products",
    "check_table",
    "check_text",
    "shown",
]

MAX_FEATURES = 64
LARGEST_FEATURE = 1e3
MAX_ROLLOUTS = 4096
"""Of one problem."""
MAX_PRODUCTS = 1 << 20
"""Rollouts of all problems of a request."""
LARGEST_PRODUCT = 1e30
"""Of a problem; beyond it float32, in which scores are stored, is near its end."""
NAME_PATTERN = r"[A-Za-z0-9._-]{1,128}"
_NAME = re.compile(NAME_PATTERN)


class _Brief(reprlib.Repr):
    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        # The library's own sorts the keys: nobody would find what they wrote.
        if level <= 0:
            return "{...}"
        parts = [f"{self.repr1(key, level - 1)}: {self.repr1(x[key], level - 1)}" for key in islice(x, self.maxdict)]
        return "{" + ", ".join(parts + ["..."] * (len(x) > self.maxdict)) + "}"

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of thousands of digits.
        return super().repr_int(x, level) if x.bit_length() < 1024 else f"an integer of {x.bit_length()} bits"


_BRIEF = _Brief()
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = 40
_BRIEF.maxlevel = 4
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 100
_MAX_INT = 2**53 - 1


def shown(value: object, limit: int = 80) -> str:
    """A value as an error message quotes it: its repr, cut at `limit` characters.

    Only what will be seen is looked at: strangers send values that are megabytes long, or nested to the limit of the stack.
    """
    text = repr(value[: limit + 1]) if isinstance(value, (str, bytes)) else _BRIEF.repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check_name(param: str, value: Any) -> str:
    """A run id, snapshot name or request id: 1 to 128 of letters, digits, dot, underscore, hyphen."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidValue(
            f"{param} is {shown(value)}; expected 1 to 128 letters, digits, '.', '_' or '-'. "
            f"Replace other characters, for example by '-'.",
            param=param,
        )
    return value


def check_text(param: str, value: Any, *, most: int) -> str:
    """A non-empty string of at most `most` characters, all of which UTF-8 can write."""
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise InvalidValue(f"{param} is {shown(value)}; expected a string of 1 to {most} characters.", param=param)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidValue(
            f"{param} is {shown(value)}, whose character {error.start} is half of a surrogate pair; expected text that "
            "UTF-8 can write. Send both halves, or replace it.",
            param=param,
        ) from None
    return value


def _is_bool(value: Any) -> bool:
    """Whether it is a truth value, of Python, numpy or torch: all of them pass for 0 or 1."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def check_int(param: str, value: Any, *, low: int = 0, high: int = _MAX_INT) -> int:
    """An integer in [low, high]; booleans are refused."""
    try:
        number = None if _is_bool(value) else value.__index__()
    except (AttributeError, TypeError, ValueError):  # an array of several, say
        number = None
    if number is None or not low <= number <= high:
        raise InvalidValue(f"{param} is {shown(value)}; expected an integer from {low} to {high}.", param=param)
    return int(number)


def _is_number(value: Any) -> bool:
    """Whether it is one real number; text and truth values are none, though `float` takes them."""
    if isinstance(value, (str, bytes, bytearray)) or _is_bool(value):
        return False
    return hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0


def check_number(param: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high]."""
    try:
        number = float(value) if _is_number(value) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not low <= number <= high:
        bounds = f" from {low:g} to {high:g}" if math.isfinite(low) or math.isfinite(high) else ""
        raise InvalidValue(f"{param} is {shown(value)}; expected a finite number{bounds}.", param=param)
    return number


def check_table(param: str, rows: Sequence[Any]) -> npt.NDArray[np.float64]:
    """A table of numbers, [rows, columns], of rows that are lists or tuples; NaN and Inf are taken.

    Raises:
        InvalidValue: naming the first place that holds no number, or none of float64, and rows of different lengths.
    """
    wide = len(rows[0]) if rows and isinstance(rows[0], (list, tuple)) else 0
    for i, row in enumerate(rows):
        if not isinstance(row, (list, tuple)):
            raise InvalidValue(f"{param}[{i}] is {shown(row)}; expected a list of numbers.", param=param)
        if not set(map(type, row)) <= {int, float}:
            _check_row(param, i, row)
        if len(row) != wide:
            raise InvalidValue(
                f"{param}[{i}] holds {len(row)} numbers and {param}[0] {wide}; expected rows of one length.",
                param=param,
            )
    try:
        return np.array(rows, dtype=np.float64).reshape(len(rows), wide)
    except OverflowError:
        i, j = next((i, j) for i, row in enumerate(rows) for j, v in enumerate(row) if _overflows(v))
        raise InvalidValue(
            f"{param}[{i}][{j}] is {shown(rows[i][j])}; expected a number within float64, +-1.8e308.", param=param
        ) from None


def _check_row(param: str, i: int, row: Sequence[Any]) -> None:
    for j, value in enumerate(row):
        if not _is_number(value):
            raise InvalidValue(
                f"{param}[{i}][{j}] is {shown(value)}; expected a number (no string, no true or false, no null).",
                param=param,
            )


def _overflows(value: Any) -> bool:
    try:
        float(value)
    except OverflowError:
        return True
    return False


def check_length(param: str, value: Any) -> float:
    """The length of a vector, a positive number of at most LARGEST_PRODUCT; a list of one is taken too."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, Sequence) and not isinstance(plain, (str, bytes)) and len(plain) == 1:
        plain = plain[0].tolist() if hasattr(plain[0], "tolist") else plain[0]
    try:
        number = check_number(param, plain, high=LARGEST_PRODUCT)
    except InvalidValue:
        number = 0.0
    if number <= 0:
        raise InvalidValue(
            f"{param} is {shown(plain)}; expected the norm of the validation gradient, one positive number of at most "
            f"{LARGEST_PRODUCT:g}. Where it is 0, no rollout of the validation problems says anything: take more.",
            param=param,
        )
    return number


def check_flag(param: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InvalidValue(f"{param} is {shown(value)}; expected true or false.", param=param)
    return value


def check_one_of(param: str, value: Any, allowed: Sequence[str]) -> str:
    """One of a fixed set of names."""
    if value not in allowed:
        raise InvalidValue(f"{param} is {shown(value)}; expected one of {', '.join(allowed)}.", param=param)
    return str(value)


def check_distinct_ids(param: str, value: Any, *, most: int) -> list[str]:
    """A non-empty list of distinct problem ids, each 1 to 256 characters."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidValue(f"{param} is {shown(value)}; expected a list of strings.", param=param)
    if not 1 <= len(value) <= most:
        raise InvalidValue(
            f"{param} holds {len(value)} ids; expected 1 to {most}. Split larger pools over several requests.",
            param=param,
        )
    seen: dict[str, int] = {}
    for index, problem_id in enumerate(value):
        check_text(f"{param}[{index}]", problem_id, most=256)
        if problem_id in seen:
            raise InvalidValue(
                f"{param}[{index}] repeats {shown(problem_id)}, first given at [{seen[problem_id]}]; "
                "expected distinct ids. Sum the sketches of one problem before sending, one row a problem.",
                param=param,
            )
        seen[problem_id] = index
    return list(value)


def check_numbers(
    param: str, value: Any, *, count: int, low: float = -math.inf, high: float = math.inf, integers: bool = False
) -> list[Any]:
    """One finite number (or integer) per problem, each in [low, high]."""
    values = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise InvalidValue(f"{param} is {shown(value)}; expected a list of {count} numbers.", param=param)
    if len(values) != count:
        raise InvalidValue(
            f"{param} holds {len(values)} values for {count} problem_ids; expected one for each, in the same order.",
            param=param,
        )
    if integers:
        return [check_int(f"{param}[{i}]", v, low=int(low)) for i, v in enumerate(values)]
    return [check_number(f"{param}[{i}]", v, low=low, high=high) for i, v in enumerate(values)]


def check_features(param: str, value: Any, *, count: int) -> list[list[float]]:
    """A matrix of finite numbers [count, 1 to MAX_FEATURES], each within +-1000; numpy, torch or nested lists."""
    wanted = f"{count} rows, one for each of problem_ids, of 1 to {MAX_FEATURES} finite numbers each"
    plain = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(plain, (list, tuple)):
        raise InvalidValue(f"{param} is {shown(value)}; expected {wanted}.", param=param)
    try:
        table = check_table(param, [row.tolist() if hasattr(row, "tolist") else row for row in plain])
    except InvalidValue as error:
        raise InvalidValue(f"{error} In all, expected {wanted}.", param=param) from None
    if table.shape[0] != count or not 1 <= table.shape[1] <= MAX_FEATURES:
        raise InvalidValue(
            f"{param} is of shape {list(table.shape)}; expected {wanted}. Keep the first principal components of "
            "wider ones.",
            param=param,
        )
    wrong = np.argwhere(~(np.abs(table) <= LARGEST_FEATURE))
    if wrong.size:
        row, column = wrong[0].tolist()
        raise InvalidValue(
            f"{param}[{row}][{column}] is {table[row, column]}; expected a finite number within +-{LARGEST_FEATURE:g}. "
            "Scale features to a spread of about 1.",
            param=param,
        )
    rows: list[list[float]] = table.tolist()
    return rows


def check_products(param: str, value: Any, *, count: int) -> list[list[float]]:
    """Products per rollout, a group for each problem: [count] lists of 1 to MAX_ROLLOUTS numbers; NaN and Inf are taken.

    Groups may differ in length, and be lists, numpy arrays or torch tensors.
    """
    groups = value.tolist() if hasattr(value, "tolist") else value
    wanted = f"{count} lists, one for each of problem_ids, of a number for each rollout"
    if isinstance(groups, (str, bytes)) or not isinstance(groups, Sequence):
        raise InvalidValue(f"{param} is {shown(groups)}; expected {wanted}.", param=param)
    if len(groups) != count:
        raise InvalidValue(
            f"{param} holds {len(groups)} groups for {count} problem_ids; expected {wanted}.", param=param
        )
    plain = all(type(group) is list for group in groups) and set(map(type, chain.from_iterable(groups))) == {float}
    if not plain or min(map(len, groups)) < 1 or max(map(len, groups)) > MAX_ROLLOUTS:
        groups = [_group(f"{param}[{place}]", group) for place, group in enumerate(groups)]
    total = sum(map(len, groups))
    if total > MAX_PRODUCTS:
        raise InvalidValue(
            f"{param} holds {total} numbers; expected at most {MAX_PRODUCTS}. Split the problems over several requests.",
            param=param,
        )
    return list(groups)


def _group(param: str, value: Any) -> list[float]:
    group = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(group, (str, bytes)) or not isinstance(group, Sequence) or not 1 <= len(group) <= MAX_ROLLOUTS:
        raise InvalidValue(
            f"{param} is {shown(group)}; expected a list of 1 to {MAX_ROLLOUTS} numbers, one for each rollout. Leave out "
            "problems without rollouts.",
            param=param,
        )
    if set(map(type, group)) == {float}:
        return list(group)
    return [_any_number(f"{param}[{place}]", each) for place, each in enumerate(group)]


def _any_number(param: str, value: Any) -> float:
    plain = value.tolist() if hasattr(value, "tolist") else value
    if type(plain) is float:
        return plain
    # A longer integer is no float.
    if type(plain) is int and abs(plain) < 1 << 1000:
        return float(plain)
    raise InvalidValue(f"{param} is {shown(plain)}; expected a number.", param=param)
