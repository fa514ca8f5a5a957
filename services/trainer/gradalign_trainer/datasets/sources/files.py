"""Records of JSONL and Parquet files, read as a stream, and problems written as either."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gradalign_trainer.datasets.records.schema import BadRecord, DataError, Place
from gradalign_trainer.datasets.sources.archives import COMPRESSED, open_contents
from gradalign_trainer.datasets.sources.remote import Source
from gradalign_trainer.problems import Problem
from gradalign_trainer.settings import nearest

__all__ = ["expand", "read_jsonl", "read_parquet", "write_jsonl", "write_parquet"]

PARQUET_ROWS = 1024  # rows decoded at once
SUFFIXES = {"jsonl": ("*.jsonl", "*.ndjson"), "parquet": ("*.parquet",)}
PACKED = {"jsonl": tuple(f"{pattern}{end}" for pattern in SUFFIXES["jsonl"] for end in COMPRESSED)}

Advance = Callable[[float], None]


def expand(path: str, kind: str) -> list[Path]:
    """The files of a path in order of name: itself, the shards of a folder, or what a glob matches.

    Raises:
        DataError: there is no file; near names are given.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = sorted(file for pattern in SUFFIXES[kind] + PACKED.get(kind, ()) for file in place.glob(pattern))
        packed = f" They may end in {' or '.join(COMPRESSED)} too." if kind in PACKED else ""
        expected = f"a folder with {' or '.join(SUFFIXES[kind])}.{packed}"
    else:
        found = sorted(Path(name) for name in glob.glob(str(place), recursive=True) if Path(name).is_file())
        near = nearest(place.name, [file.name for file in place.parent.glob("*")] if place.parent.is_dir() else [])
        expected = f"a {kind} file, a folder of them or a glob, seen from {Path.cwd()}{near}."
    if not found:
        raise DataError(f"{path} holds no {kind} data; expected {expected}")
    return found


def read_jsonl(path: Source, advance: Advance) -> Iterator[tuple[Place, Any]]:
    """Yield the place and the decoded record of every line; a `BadRecord` where a line is no JSON.

    Blank lines are passed over; gzip and Zstandard are read as what they hold. `advance` is told of bytes on the disk.

    Raises:
        DataError: the file is cut short or damaged where it is compressed, or is another kind of archive.
    """
    told = 0
    with open_contents(path) as contents:
        for number, line in contents.lines(path):
            passed = contents.passed()
            advance(passed - told)
            told = passed
            place = Place(str(path), number)
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                record = json.loads(text) if text else None
            except (ValueError, RecursionError) as error:
                yield place, BadRecord(place, f"not JSON: {error}; expected one JSON object a line, in UTF-8.")
                continue
            if text:
                yield place, record


def read_parquet(path: Source, advance: Advance) -> Iterator[tuple[Place, Any]]:
    """Yield the place and the record of every row, decoding a thousand at a time. `advance` is told of bytes, in steps.

    Raises:
        DataError: pyarrow cannot read the file.
    """
    import pyarrow
    from pyarrow import parquet

    size, row = path.stat().st_size, 0
    try:
        with path.open("rb") as raw, parquet.ParquetFile(raw) as file:
            rows = max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for record in batch.to_pylist():
                    row += 1
                    yield Place(str(path), row, "row"), record
                advance(size * batch.num_rows / rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet after row {row}: {error}. Expected a whole Parquet file; copy it anew, or "
            'say kind = "jsonl" if that is what it is.'
        ) from error


def write_jsonl(problems: Iterable[Problem], path: str | Path) -> None:
    """Write problems as `load_problems` reads them, one JSON object a line."""
    with Path(path).open("w", encoding="utf-8") as file:
        for problem in problems:
            file.write(json.dumps(_record(problem)) + "\n")


def write_parquet(problems: Iterable[Problem], path: str | Path) -> None:
    """Write problems as `load_problems` reads them; `extra` is a column of JSON text."""
    import pyarrow
    from pyarrow import parquet

    columns = ("problem_id", "prompt", "answer", "source", "extra")
    records = [{**_record(problem), "extra": json.dumps(_record(problem)["extra"])} for problem in problems]
    schema = pyarrow.schema([(name, pyarrow.string()) for name in columns])
    parquet.write_table(pyarrow.Table.from_pylist(records, schema=schema), path)


def _record(problem: Problem) -> dict[str, Any]:
    return {
        "problem_id": problem.problem_id,
        "prompt": problem.prompt,
        "answer": problem.answer,
        "source": problem.source,
        "extra": dict(problem.extra),
    }
