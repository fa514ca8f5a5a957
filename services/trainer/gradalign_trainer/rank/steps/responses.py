"""Scored responses as the reference implementation writes them: `responses_sorted.json`, a list, or the same as JSONL.

    {"group_id": 7, "sample_id": 0, "prompt": "...", "response": "...", "is_correct": true, ...}

`group_id` is the problem's `extra_info.index`, `prompt` the text that the model was given, chat template and all. Of
`passed`, `is_correct` and `reward` the first that is there and not null is the reward. A record that does not fit is left
out and reported with its line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from gradalign.wire.checks import shown
from gradalign_trainer.datasets.records.schema import BadRecord, DataError, Place
from gradalign_trainer.datasets.sources.archives import open_contents
from gradalign_trainer.datasets.sources.files import Advance, read_jsonl, read_parquet
from gradalign_trainer.datasets.sources.remote import Source
from gradalign_trainer.numerals import as_integer, as_number
from gradalign_trainer.reporting.progress import TellsProgress, no_progress

__all__ = [
    "GroupId",
    "Response",
    "ResponseFile",
    "ResponseGroup",
    "again",
    "none_fits",
    "parse_group_id",
    "parse_response",
    "read_responses",
    "response_records",
    "sort_key",
    "wire_id",
]

GroupId: TypeAlias = int | str
LONGEST_ID = 256  # characters, as the wire has it
SHOWN = 5
_REWARDS = ("passed", "is_correct", "reward")


class Response(NamedTuple):
    """A record of a file.

    Attributes:
        group_id: of its problem.
        sample: tells it from the others of its group, hashable; None where the record has none.
        prompt: what the model was given.
        response: what it said.
        reward: of it.
    """

    group_id: GroupId
    sample: Any
    prompt: str
    response: str
    reward: float


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

    path: Source
    groups: tuple[ResponseGroup, ...]
    records: int
    bad: tuple[BadRecord, ...]


def sort_key(group_id: GroupId) -> tuple[bool, int, str]:
    """Orders numbers as numbers, before texts."""
    return (False, group_id, "") if isinstance(group_id, int) else (True, 0, group_id)


def wire_id(group_id: GroupId) -> str:
    """The problem id of a group: numbers padded, so that the scorer, which breaks ties by id, breaks them by number."""
    return f"{group_id:012d}" if isinstance(group_id, int) else group_id


def read_responses(path: Source, *, progress: TellsProgress = no_progress) -> ResponseFile:
    """Read a file of scored responses: a JSON list, JSONL or Parquet, told apart by content and ending.

    JSON may be compressed by gzip or Zstandard.

    Raises:
        DataError: the file is not there, or none of its records fits.
    """
    rows: dict[GroupId, list[tuple[str, str, float]]] = {}
    seen: dict[tuple[GroupId, Any], Place] = {}
    bad: list[BadRecord] = []
    count = 0
    with response_records(path, progress) as records:
        for place, record in records:
            count += 1
            parsed = parse_response(record, place)
            if isinstance(parsed, BadRecord):
                bad.append(parsed)
                continue
            if parsed.sample is not None:
                first = seen.setdefault((parsed.group_id, parsed.sample), place)
                if first is not place:
                    bad.append(again(parsed.group_id, parsed.sample, place, first))
                    continue
            rows.setdefault(parsed.group_id, []).append(parsed[2:])
    groups = tuple(
        ResponseGroup(group_id, *map(tuple, zip(*rows[group_id], strict=True)))
        for group_id in sorted(rows, key=sort_key)
    )
    if not groups:
        raise none_fits(path, count, bad)
    return ResponseFile(path, groups, count, tuple(bad))


def none_fits(path: Source, records: int, bad: Sequence[BadRecord]) -> DataError:
    """The error of a file of which no record fits; the first bad ones are in the message."""
    listing = "".join(f"\n  {each}" for each in bad[:SHOWN])
    return DataError(f"{path}: none of its {records} records is a scored response.{listing}", bad)


def again(group_id: GroupId, sample: Any, place: Place, first: Place) -> BadRecord:
    """A record whose group and sample were there before."""
    return BadRecord(place, f"group_id {group_id!r}, sample_id {shown(sample)} again; the first is at {first}.")


@contextmanager
def response_records(path: Source, progress: TellsProgress) -> Iterator[Iterator[tuple[Place, Any]]]:
    """The records of a file with their places, as a stream; a JSON list alone is read whole first.

    Raises:
        DataError: the file is not there; or in the block, it is damaged.
    """
    if not path.is_file():
        raise DataError(
            f"{path} is no file; expected responses as a JSON list, JSONL or Parquet, seen from {Path.cwd()}."
        )
    with progress(f"reading {path.name}", path.stat().st_size or None) as advance:
        yield _records(path, advance)


def _records(path: Source, advance: Advance) -> Iterator[tuple[Place, Any]]:
    if path.suffix == ".parquet":
        return read_parquet(path, advance)
    with open_contents(path) as contents:
        start = next(contents.lines(path), (1, b""))[1].removeprefix(b"\xef\xbb\xbf").lstrip()
    return _json_list(path, advance) if start.startswith(b"[") else read_jsonl(path, advance)


def _json_list(path: Source, advance: Advance) -> Iterator[tuple[Place, Any]]:
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


class _Bad(Exception):
    pass


def parse_response(record: Any, place: Place) -> Response | BadRecord:
    """The response of a record, or what is wrong with it. A sample that is a list or an object counts as none.

    Args:
        record: as decoded, or the bad record that its line was.
        place: where it stands.
    """
    try:
        return record if isinstance(record, BadRecord) else _parsed(record)
    except _Bad as error:
        return BadRecord(place, str(error))


def _parsed(record: Any) -> Response:
    if not isinstance(record, Mapping):
        raise _Bad(f'the record is {shown(record)}; expected {{"group_id": 0, "prompt": "...", ...}}.')
    group_id = parse_group_id(record.get("group_id"))
    if group_id is None:
        raise _Bad(f"group_id = {shown(record.get('group_id'))}; expected a number from 0, or a text up to 256.")
    texts = {}
    for name in ("prompt", "response"):
        value = record.get(name)
        if not isinstance(value, str) or (name == "prompt" and not value):
            raise _Bad(f"{name} = {shown(value)}; expected the text as the model was given it or gave it.")
        texts[name] = value
    sample = record.get("sample_id")
    sample = None if isinstance(sample, (list, dict)) else sample
    return Response(group_id, sample, **texts, reward=_reward(record))


def parse_group_id(value: Any) -> GroupId | None:
    """The id as a number where it is one (0.0 is 0) or spells one, else as text; None for what is no id."""
    if isinstance(value, str) and not 1 <= len(value) <= LONGEST_ID:
        return None
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else as_integer(value)
    if number is not None and 0 <= number < 10**12:
        return number
    return value if isinstance(value, str) else None


def _reward(record: Mapping[str, Any]) -> float:
    name = next((name for name in _REWARDS if record.get(name) is not None), None)
    if name is None:
        raise _Bad(f"there is no reward; expected one of {', '.join(_REWARDS)}. The record has {', '.join(record)}.")
    value = record[name]
    number = value if isinstance(value, bool) else as_number(value)
    if number is None or not math.isfinite(number):
        raise _Bad(f"{name} = {shown(value)}; expected true, false or a finite number.")
    return float(number)
