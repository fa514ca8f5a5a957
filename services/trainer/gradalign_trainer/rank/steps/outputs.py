"""The reference implementation's output files: similarities, pass rates, and the selected problems."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradalign.wire.checks import shown
from gradalign_trainer.datasets.records.schema import BadRecord, DataError, Place
from gradalign_trainer.datasets.sources.files import read_jsonl, read_parquet
from gradalign_trainer.datasets.sources.remote import Source
from gradalign_trainer.rank.steps.responses import GroupId, parse_group_id

__all__ = ["ProblemFile", "read_problem_file", "write_lines", "write_selected"]

SHOWN = 5


class ProblemFile:
    """Problem records by the `extra_info.index` that groups are called by.

    Args:
        path: of the file.
        records: as read, by index, in the order of the file.
        bad: records left out.
        dropped: records left out that repeat the index of an earlier one.
    """

    def __init__(
        self, path: Source, records: Mapping[GroupId, Any], bad: Sequence[BadRecord], dropped: int = 0
    ) -> None:
        self.path, self.records, self.bad, self.dropped = path, records, tuple(bad), dropped

    def check(self, wanted: Iterable[GroupId]) -> None:
        """Raise DataError where a problem that was wanted is not in the file."""
        missing = [group_id for group_id in wanted if group_id not in self.records]
        if missing:
            raise DataError(
                f"{len(missing)} groups have no problem in {self.path} with their id as extra_info.index: "
                f"{', '.join(map(str, missing[:SHOWN]))}... Give the file that the responses were made from."
            )


def read_problem_file(
    path: Source, *, drop_duplicates: bool = False, keep: Container[GroupId] | None = None
) -> ProblemFile:
    """Read verl's JSONL or Parquet, keeping records as they are.

    Args:
        path: of the file.
        drop_duplicates: keep the first record of every index.
        keep: indices of which the record is kept, None standing for the others; None for all.

    Raises:
        DataError: the file cannot be read, no record has an index, or two have the same.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file; expected problems as verl's JSONL or Parquet, seen from {Path.cwd()}.")
    records: dict[GroupId, Any] = {}
    places: dict[GroupId, Place] = {}
    bad: list[BadRecord] = []
    dropped = 0
    for place, record in _records(path):
        if isinstance(record, BadRecord):
            bad.append(record)
            continue
        info = record.get("extra_info") if isinstance(record, Mapping) else None
        index = parse_group_id(info.get("index")) if isinstance(info, Mapping) else None
        if index is None:
            bad.append(
                BadRecord(place, f'extra_info = {shown(info)}; expected {{"index": 0}}, the group_id of responses.')
            )
        elif index in records and drop_duplicates:
            dropped += 1
        elif index in records:
            raise DataError(
                f"{place}: extra_info.index {index!r} again; the first is at {places[index]}. Responses name their "
                "problem by it, so it must be distinct. To keep the first of each, say --duplicates drop."
            )
        else:
            records[index] = record if keep is None or index in keep else None
            places[index] = place
    if not records:
        raise DataError(
            f"{path} has no problem with an index.{''.join(f'{chr(10)}  {each}' for each in bad[:SHOWN])}", bad
        )
    return ProblemFile(path, records, bad, dropped)


def _records(path: Source) -> Iterator[tuple[Place, Any]]:
    read = read_parquet if path.suffix == ".parquet" else read_jsonl
    return read(path, lambda amount: None)  # noqa: ARG005


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write JSONL beside its place and move it there, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.new")
    with beside.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    os.replace(beside, path)


def write_selected(folder: Path, problems: ProblemFile, selected: Iterable[GroupId]) -> None:
    """Write the selected problems, in the order of their file, as `train.jsonl` and `train.parquet`.

    Raises:
        DataError: a selected problem is not in the file, or the records fit no one Parquet schema.
    """
    import pyarrow
    from pyarrow import parquet

    wanted = set(selected)
    problems.check(wanted)
    records = [record for index, record in problems.records.items() if index in wanted]
    write_lines(folder / "train.jsonl", records)
    beside = folder / "train.parquet.new"
    try:
        parquet.write_table(pyarrow.Table.from_pylist(records), beside)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{folder / 'train.jsonl'} is written, but Parquet wants one type a field and the records differ: {error}."
        ) from error
    os.replace(beside, folder / "train.parquet")
