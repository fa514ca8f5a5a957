"""Settings as frozen dataclasses whose errors name the key, the value, what is valid and the nearest valid key.

A field's metadata (`limits`) says how a settings file spells it and which values it takes; `check_settings` holds a
whole instance to that and reports every fault at once. The types it knows: bool, int, float, str, Path, tuples of
str, mappings, and unions of these, of None, and of what a field's `check` looks after.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from gradalign.errors import GradAlignError, InvalidValue
from gradalign.wire.checks import check_name, shown

__all__ = [
    "SettingsError",
    "check_settings",
    "key_of",
    "limits",
    "nearest",
    "read_toml",
    "run_id_fault",
    "with_override",
]


class SettingsError(GradAlignError):
    """Settings that cannot be used.

    Attributes:
        faults: one sentence or two for each, every fault there is.
    """

    def __init__(self, faults: Sequence[str], *, where: str = "the settings") -> None:
        self.faults = list(faults)
        many = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{where} cannot be used, {many}:" + "".join(f"\n  {fault}" for fault in faults))


_TYPE_NAMES: Mapping[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path, as a string",
    tuple: "a list of strings",
    Mapping: "a table",
    Sequence: "a list",
    NoneType: "nothing",
}


def limits(
    *,
    key: str | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: Sequence[str] | None = None,
    check: Callable[[Any], str | None] | None = None,
) -> Mapping[str, Any]:
    """Metadata of a dataclass field.

    Args:
        key: how a file spells it, `section.name`; the field's own name where None, in no file where empty.
        low: smallest value.
        high: largest value.
        above: the value must be larger than this.
        choices: the only values.
        check: what is wrong with a value of the right type, as "expected ...", or None where nothing is.
    """
    given = {"key": key, "low": low, "high": high, "above": above, "choices": choices, "check": check}
    return {name: value for name, value in given.items() if value is not None}


def key_of(field: dataclasses.Field[Any]) -> str:
    """How a settings file spells a field; empty where it may not stand in one."""
    return str(field.metadata.get("key", field.name))


def nearest(given: str, valid: Iterable[str]) -> str:
    """The hint " (did you mean 'x'?)" where a valid name is near the given one, by spelling or by its last part."""
    names = list(valid)
    leaves = {name.rpartition(".")[2]: name for name in names}
    found = difflib.get_close_matches(given, names, n=1, cutoff=0.7)
    found = found or [leaves[leaf] for leaf in difflib.get_close_matches(given.rpartition(".")[2], leaves, n=1)]
    return f" (did you mean {found[0]!r}?)" if found else ""


def check_settings(settings: Any, *, prefix: str = "") -> None:
    """Hold a frozen dataclass to its types and limits; to be called from `__post_init__`.

    Integers given for numbers, strings given for paths and lists given for tuples are converted in place.

    Args:
        settings: the instance.
        prefix: goes before each key in messages, `data.pool.` say.

    Raises:
        SettingsError: any value is of a wrong type or out of range; all faults are in it.
    """
    hints, faults = get_type_hints(type(settings)), []
    for field in dataclasses.fields(settings):
        given = getattr(settings, field.name)
        value, fault = _checked(given, hints[field.name], field.metadata)
        if fault:
            name = prefix + (key_of(field) or field.name)
            faults.append(f"{name} = {shown(given)} ({_kind(given)}): {fault}{_default(field)}.")
        else:
            object.__setattr__(settings, field.name, value)
    if faults:
        raise SettingsError(faults)


def _checked(value: Any, hint: Any, metadata: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The value, converted where its type allows, and what is wrong with it."""
    kinds = [get_origin(kind) or kind for kind in (get_args(hint) if _is_union(hint) else (hint,))]
    if Any in kinds:
        fits, converted = True, value
    else:
        fits, converted = _converted(value, kinds)
    if not fits:
        wanted = " or ".join(_TYPE_NAMES[kind] for kind in kinds if kind in _TYPE_NAMES and kind is not NoneType)
        return value, f"expected {wanted}{_range(metadata)}"
    if converted is None:
        return None, None
    check = metadata.get("check")
    return converted, _out_of_range(converted, metadata) or (check(converted) if check else None)


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _converted(value: Any, kinds: Sequence[Any]) -> tuple[bool, Any]:
    for kind in kinds:
        if kind is Path and isinstance(value, (str, Path)) and str(value):
            return True, Path(value)
        if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
            return True, float(value)
        if kind is tuple and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return True, tuple(value)
        exact = kind in (bool, int, float, Path, tuple)
        if (not exact and isinstance(value, kind)) or (kind in (bool, int) and type(value) is kind):
            return True, value
    return False, value


def _out_of_range(value: Any, metadata: Mapping[str, Any]) -> str | None:
    low, high, above = (metadata.get(name) for name in ("low", "high", "above"))
    outside = (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    )
    choices: Sequence[str] | None = metadata.get("choices")
    items = value if isinstance(value, tuple) else (value,)
    strange = [item for item in items if choices is not None and item not in choices]
    if strange and choices is not None:
        return f"expected one of {', '.join(choices)}{nearest(str(strange[0]), choices)}"
    return f"expected a value{_range(metadata)}" if outside else None


def _range(metadata: Mapping[str, Any]) -> str:
    spoken = {"low": "at least", "above": "above", "high": "at most"}
    parts = [f"{words} {metadata[name]:g}" for name, words in spoken.items() if name in metadata]
    return " " + " and ".join(parts) if parts else ""


def _kind(value: Any) -> str:
    plain = {bool: "a boolean", float: "a number", list: "a list", dict: "a table"}
    return plain.get(type(value), _TYPE_NAMES.get(type(value), type(value).__name__))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default in (dataclasses.MISSING, None, "", ()):
        return ""
    shown_as = {True: "true", False: "false"}.get(field.default, field.default)
    return f"; the default is {shown_as}"


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        SettingsError: there is no such file (near names are given), or it is not TOML (the line is given).
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            [f'it is not TOML: {error}. Strings need quotes: name = "value".'], where=str(path)
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        near = nearest(path.name, [other.name for other in path.parent.glob("*.toml")])
        raise SettingsError([f"it cannot be read: {error}{near}"], where=str(path)) from error


def with_override(table: dict[str, Any], assignment: str, text_keys: Iterable[str] = ()) -> None:
    """Apply one `--set key=value` to a table, in place.

    Args:
        table: as read from TOML.
        assignment: `section.key=value`; the value is read as TOML where it is that, else taken as a string.
        text_keys: keys whose value is a string whatever it looks like.

    Raises:
        SettingsError: there is no `=`, or the key runs through something that is not a table.
    """
    key, equals, text = assignment.partition("=")
    key, text = key.strip(), text.strip()
    *sections, leaf = key.split(".")
    if not equals or not all([*sections, leaf]):
        raise SettingsError(
            [f"{assignment!r}: expected key=value, for example rounds=20 or scorer.url=http://host:8000."]
        )
    at: Any = table
    for depth, section in enumerate(sections):
        at = at.setdefault(section, {})
        if not isinstance(at, dict):
            outer = ".".join(sections[: depth + 1])
            raise SettingsError([f"{assignment!r}: {outer} is {shown(at)}, not a table; set {outer} itself."])
    at[leaf] = text if key in text_keys else _toml_value(text)


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if list(parsed) == ["value"] else text


def run_id_fault(run_id: str) -> str | None:
    """What was expected of a run's name that the wire does not take; None for one that it takes."""
    try:
        check_name("run_id", run_id)
    except InvalidValue:
        return "expected 1 to 128 letters, digits, '.', '_' or '-'"
    return None
