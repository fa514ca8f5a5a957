"""Scored responses as the reference implementation writes them: `responses_sorted.json`, a list, or the same as JSONL.

    {"group_id": 7, "sample_id": 0, "prompt": "...", "response": "...", "is_correct": true, ...}

`group_id` is the problem's `extra_info.index`, `prompt` the text that the model was given, chat template and all. Of
`passed`, `is_correct` and `reward` the first that is there and not null is the reward. A record that does not fit is left
out and reported with its line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gradalign.wire.checks import shown
from gradalign_trainer.datasets.records.schema import BadRecord, DataError, Place
from gradalign_trainer.datasets.sources.archives import open_contents
from gradalign_trainer.datasets.sources.files import read_jsonl, read_parquet
from gradalign_trainer.numerals import as_integer, as_number
from gradalign_trainer.reporting.progress import TellsProgress, no_progress

__all__ = ["GroupId", "ResponseFile", "ResponseGroup", "parse_group_id", "read_responses", "sort_key", "wire_id"]

GroupId: TypeAlias = int | str
LONGEST_ID = 256  # characters, as the wire has it
SHOWN = 5
_REWARDS = ("passed", "is_correct", "reward")


@dataclass(frozen=True, slots=True)
class ResponseGroup:
    """The scored responses to one problem, in the order of the file; G of them.

    Attributes:
        group_id: the problem.
        prompts: what the model was given, G texts; all the same but for odd files.
        responses: what it said, G texts.
        rewards: in [0, 1] for pass rates to mean something, G of them.
    """

    group_id: GroupId
    prompts: tuple[str, ...]
    responses: tuple[str, ...]
    rewards: tuple[float, ...]

    @property
    def signal(self) -> bool:
        """Whether the rewards differ; otherwise the gradient is zero."""
        return len(set(self.rewards)) > 1


@dataclass(frozen=True, slots=True)
class ResponseFile:
    """What a file held.

    Attributes:
        path: of the file.
        groups: in the order of their ids.
        records: read in all.
        bad: records left out.
    """

    path: Path
    groups: tuple[ResponseGroup, ...]
    records: int
    bad: tuple[BadRecord, ...]


def sort_key(group_id: GroupId) -> tuple[bool, int, str]:
    """Orders numbers as numbers, before texts."""
    return (False, group_id, "") if isinstance(group_id, int) else (True, 0, group_id)


def wire_id(group_id: GroupId) -> str:
    """The problem id of a group: numbers padded, so that the scorer, which breaks ties by id, breaks them by number."""
    return f"{group_id:012d}" if isinstance(group_id, int) else group_id


def read_responses(path: Path, *, progress: TellsProgress = no_progress) -> ResponseFile:
    """Read a file of scored responses: a JSON list, JSONL or Parquet, told apart by content and ending.

    JSON may be compressed by gzip or Zstandard.

    Raises:
        DataError: the file is not there, or none of its records fits.
    """
    if not path.is_file():
        raise DataError(
            f"{path} is no file; expected responses as a JSON list, JSONL or Parquet, seen from {Path.cwd()}."
        )
    rows: dict[GroupId, list[tuple[str, str, float]]] = {}
    seen: dict[tuple[GroupId, Any], Place] = {}
    bad: list[BadRecord] = []
    count = 0
    with progress(f"reading {path.name}", path.stat().st_size) as advance:
        for place, record in _records(path, advance):
            count += 1
            try:
                group_id, row = _parsed(record, place, seen)
            except _Bad as error:
                bad.append(error.record)
                continue
            rows.setdefault(group_id, []).append(row)
    groups = tuple(
        ResponseGroup(group_id, *map(tuple, zip(*rows[group_id], strict=True)))
        for group_id in sorted(rows, key=sort_key)
    )
    if not groups:
        listing = "".join(f"\n  {each}" for each in bad[:SHOWN])
        raise DataError(f"{path}: none of its {count} records is a scored response.{listing}", bad)
    return ResponseFile(path, groups, count, tuple(bad))


class _Bad(Exception):
    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.record = BadRecord(place, message)


def _records(path: Path, advance: Any) -> Iterator[tuple[Place, Any]]:
    if path.suffix == ".parquet":
        return read_parquet(path, advance)
    with open_contents(path) as contents:
        start = next(contents.lines(path), (1, b""))[1].removeprefix(b"\xef\xbb\xbf").lstrip()
    return _json_list(path, advance) if start.startswith(b"[") else read_jsonl(path, advance)


def _json_list(path: Path, advance: Any) -> Iterator[tuple[Place, Any]]:
    """The elements of a JSON list, each with the line it begins on; where the JSON breaks, that line as a bad record."""
    with open_contents(path) as contents:
        text = contents.whole(path).decode("utf-8-sig", errors="replace")
    decoder = json.JSONDecoder()
    at, line, counted = text.index("[") + 1, 1, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line += text.count("\n", counted, at)
        counted = at
        place = Place(str(path), line)
        if text[at : at + 1] == "]":
            return
        try:
            record, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield place, BadRecord(place, f"the JSON list breaks here, and nothing behind it was read: {error}.")
            return
        yield place, record
        advance(end - at)
        at = end


def _parsed(
    record: Any, place: Place, seen: dict[tuple[GroupId, Any], Place]
) -> tuple[GroupId, tuple[str, str, float]]:
    if isinstance(record, BadRecord):
        raise _Bad(place, record.message)
    if not isinstance(record, Mapping):
        raise _Bad(place, f'the record is {shown(record)}; expected {{"group_id": 0, "prompt": "...", ...}}.')
    group_id = parse_group_id(record.get("group_id"))
    if group_id is None:
        raise _Bad(place, f"group_id = {shown(record.get('group_id'))}; expected a number from 0, or a text up to 256.")
    texts = []
    for name in ("prompt", "response"):
        value = record.get(name)
        if not isinstance(value, str) or (name == "prompt" and not value):
            raise _Bad(place, f"{name} = {shown(value)}; expected the text as the model was given it or gave it.")
        texts.append(value)
    reward = _reward(record, place)
    sample = record.get("sample_id")
    if sample is not None and not isinstance(sample, (list, dict)):
        earlier = seen.setdefault((group_id, sample), place)
        if earlier is not place:
            raise _Bad(place, f"group_id {group_id!r}, sample_id {shown(sample)} again; the first is at {earlier}.")
    return group_id, (texts[0], texts[1], reward)


def parse_group_id(value: Any) -> GroupId | None:
    """The id as a number where it is one (0.0 is 0) or spells one, else as text; None for what is no id."""
    if isinstance(value, str) and not 1 <= len(value) <= LONGEST_ID:
        return None
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else as_integer(value)
    if number is not None and 0 <= number < 10**12:
        return number
    return value if isinstance(value, str) else None


def _reward(record: Mapping[str, Any], place: Place) -> float:
    name = next((name for name in _REWARDS if record.get(name) is not None), None)
    if name is None:
        raise _Bad(
            place, f"there is no reward; expected one of {', '.join(_REWARDS)}. The record has {', '.join(record)}."
        )
    value = record[name]
    number = value if isinstance(value, bool) else as_number(value)
    if number is None or not math.isfinite(number):
        raise _Bad(place, f"{name} = {shown(value)}; expected true, false or a finite number.")
    return float(number)
