"""Checks on values that cross the wire. Each failure names the parameter, what was given and what would do."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from gradalign.errors import InvalidValue

__all__ = [
    "LARGEST_FEATURE",
    "MAX_FEATURES",
    "NAME_PATTERN",
    "check_distinct_ids",
    "check_features",
    "check_int",
    "check_name",
    "check_number",
    "check_numbers",
    "check_one_of",
    "check_text",
    "shown",
]

MAX_FEATURES = 64
LARGEST_FEATURE = 1e3
NAME_PATTERN = r"[A-Za-z0-9._-]{1,128}"
_NAME = re.compile(NAME_PATTERN)


class _Brief(reprlib.Repr):
    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        # The library's own sorts the keys: nobody would find what they wrote.
        if level <= 0:
            return "{...}"
        parts = [f"{self.repr1(key, level - 1)}: {self.repr1(x[key], level - 1)}" for key in islice(x, self.maxdict)]
        return "{" + ", ".join(parts + ["..."] * (len(x) > self.maxdict)) + "}"


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
    """A non-empty string of at most `most` characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise InvalidValue(f"{param} is {shown(value)}; expected a string of 1 to {most} characters.", param=param)
    return value


def check_int(param: str, value: Any, *, low: int = 0, high: int = _MAX_INT) -> int:
    """An integer in [low, high]; booleans are refused."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not low <= (number := value.__index__()) <= high:
        raise InvalidValue(f"{param} is {shown(value)}; expected an integer from {low} to {high}.", param=param)
    return int(number)


def check_number(param: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high]."""
    try:
        number = float(value) if not isinstance(value, (bool, str, bytes)) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or not low <= number <= high:
        bounds = f" from {low:g} to {high:g}" if math.isfinite(low) or math.isfinite(high) else ""
        raise InvalidValue(f"{param} is {shown(value)}; expected a finite number{bounds}.", param=param)
    return number


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
    try:
        table = np.asarray(plain)
    except ValueError:
        table = np.zeros(0)  # rows of different lengths
    fits = table.ndim == 2 and table.shape[0] == count and 1 <= table.shape[1] <= MAX_FEATURES
    # numpy takes true among numbers for 1.
    if not fits or table.dtype.kind not in "fiu" or any(type(each) is bool for row in plain for each in row):
        shape = f"of shape {list(table.shape)}" if table.ndim == 2 else shown(value)
        raise InvalidValue(
            f"{param} is {shape}; expected {wanted}. Keep the first principal components of wider ones.", param=param
        )
    wrong = np.argwhere(~(np.abs(table) <= LARGEST_FEATURE))
    if wrong.size:
        row, column = wrong[0].tolist()
        raise InvalidValue(
            f"{param}[{row}][{column}] is {table[row, column]}; expected a finite number within +-{LARGEST_FEATURE:g}. "
            "Scale features to a spread of about 1.",
            param=param,
        )
    rows: list[list[float]] = table.astype(np.float64).tolist()
    return rows
