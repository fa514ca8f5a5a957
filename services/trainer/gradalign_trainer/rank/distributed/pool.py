"""A file of responses as groups in order of their ids, larger than memory: an SQLite file beside the ledger.

Records are read as a stream, in whatever order they stand, and put down; an index then gives the groups in order. What is
in memory at once are the records of one transaction and SQLite's cache.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sqlite3
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from gradalign_trainer.datasets.records.messages import Unfit, encodable
from gradalign_trainer.datasets.records.schema import BadRecord, Place
from gradalign_trainer.datasets.sources.remote import Source
from gradalign_trainer.rank.steps.responses import (
    GroupId,
    Response,
    ResponseGroup,
    again,
    none_fits,
    parse_response,
    response_records,
)
from gradalign_trainer.reporting.progress import TellsProgress

__all__ = ["Pool", "Rewarded", "Score"]

TOGETHER = 4096  # records of one transaction
SHOWN = 10
# Columns of floats have no type: to one that is REAL, -0.0 is 0.
_TABLES = """
CREATE TABLE responses (key TEXT, sample TEXT, line INTEGER, prompt TEXT, response TEXT, reward);
CREATE TABLE bad (line INTEGER, unit TEXT, message TEXT);
CREATE TABLE groups (position INTEGER PRIMARY KEY, key TEXT, start INTEGER);
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER);
"""
_SCORES = (
    "CREATE TABLE given.scores (position INTEGER PRIMARY KEY, priority, value, loss); PRAGMA given.synchronous=OFF;"
)
_REPEATED = """
CREATE TEMP TABLE repeated AS SELECT r.rowid AS number, r.key, r.sample, r.line, f.line AS first FROM responses r
JOIN (SELECT key, sample, MIN(rowid) AS number FROM responses WHERE sample IS NOT NULL
      GROUP BY key, sample HAVING COUNT(*) > 1) d ON r.key = d.key AND r.sample = d.sample AND r.rowid > d.number
JOIN responses f ON f.rowid = d.number
"""
_OF_GROUPS = """
SELECT g.position, g.key, {columns} FROM groups g JOIN responses r ON r.key = g.key
WHERE g.position >= ? AND g.position < ? ORDER BY g.position, r.rowid
"""


class Rewarded(NamedTuple):
    """A group without its texts.

    Attributes:
        group_id: of it.
        rewards: of its responses, in the order of the file.
    """

    group_id: GroupId
    rewards: tuple[float, ...]


class Score(NamedTuple):
    """What a group is given.

    Attributes:
        position: of the group.
        priority: that it is selected by.
        value: what is written as its similarity.
        loss: of it.
    """

    position: int
    priority: float
    value: float | None
    loss: float


class Pool:
    """The groups of a file, by their position in the order of ids.

    Args:
        place: of the SQLite file; made where it is not there, or not whole.
        train: file of responses.
        known: ids of the groups to keep; None for all.
        progress: told how far reading is.

    Attributes:
        records: read in all.
        bad: of them, those left out.
        left_out: groups that are not known.
        responses: of the known groups.

    Raises:
        DataError: the file is not there, is damaged, or none of its records fits.
    """

    def __init__(self, place: Path, train: Source, known: Container[GroupId] | None, progress: TellsProgress) -> None:
        self._place, self._train = place, train
        self._unit = "row" if train.suffix == ".parquet" else "line"
        if not _is_whole(place):
            place.unlink(missing_ok=True)
            self._make(known, progress)
        self._file = _opened(place)
        self.records, self.bad, self.left_out, self.responses, self._count = (
            self._fact(name) for name in ("records", "bad", "left_out", "responses", "groups")
        )

    def _fact(self, name: str) -> int:
        (value,) = self._file.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return int(value)

    def _make(self, known: Container[GroupId] | None, progress: TellsProgress) -> None:
        with closing(_opened(self._place)) as self._file:
            self._file.executescript(_TABLES)
            self._fill(known, progress)

    def _fill(self, known: Container[GroupId] | None, progress: TellsProgress) -> None:
        records = self._read(progress)
        self._file.execute("CREATE INDEX by_group ON responses (key, sample)")
        self._leave_out_repeated()
        (bad,) = self._file.execute("SELECT COUNT(*) FROM bad").fetchone()
        groups, responses, left_out = self._put_in_order(known)
        if not groups + left_out:
            raise none_fits(self._train, records, list(itertools.islice(self.bad_records(), SHOWN)))
        facts = {"records": records, "bad": bad, "left_out": left_out, "responses": responses, "groups": groups}
        with self._place.open("rb") as file:
            os.fsync(file.fileno())  # what says that the file is whole must not reach the disk before it
        self._file.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
        self._file.commit()

    def _read(self, progress: TellsProgress) -> int:
        count = 0
        with response_records(self._train, progress) as records:
            while part := list(itertools.islice(records, TOGETHER)):
                count += len(part)
                rows, bad = [], []
                for place, record in part:
                    parsed = _encodable(parse_response(record, place), place)
                    if isinstance(parsed, BadRecord):
                        bad.append(parsed)
                    else:
                        key, sample = _key(parsed.group_id), _sample_text(parsed.sample)
                        rows.append((key, sample, place.number, parsed.prompt, parsed.response, parsed.reward))
                self._file.executemany("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)", rows)
                self._put_bad(bad)
                self._file.commit()
        return count

    def _leave_out_repeated(self) -> None:
        self._file.execute(_REPEATED)
        rows = self._file.execute("SELECT key, sample, line, first FROM repeated")
        while part := rows.fetchmany(TOGETHER):
            found = [
                again(_group_id(key), json.loads(sample), self._at(line), self._at(first))
                for key, sample, line, first in part
            ]
            self._put_bad(found)
        self._file.execute("UPDATE responses SET key = NULL WHERE rowid IN (SELECT number FROM repeated)")
        self._file.commit()

    def _put_bad(self, bad: Sequence[BadRecord]) -> None:
        rows = [(each.place.number, each.place.unit, each.message) for each in bad]
        self._file.executemany("INSERT INTO bad VALUES (?, ?, ?)", rows)

    def _at(self, line: int) -> Place:
        return Place(str(self._train), line, self._unit)

    def _put_in_order(self, known: Container[GroupId] | None) -> tuple[int, int, int]:
        counts = self._file.execute(
            "SELECT key, COUNT(*) FROM responses WHERE key IS NOT NULL GROUP BY key ORDER BY key"
        )
        position = start = left_out = 0
        while part := counts.fetchmany(TOGETHER):
            kept = []
            for key, count in part:
                if known is not None and _group_id(key) not in known:
                    left_out += 1
                    continue
                kept.append((position, key, start))
                position, start = position + 1, start + count
            self._file.executemany("INSERT INTO groups VALUES (?, ?, ?)", kept)
        self._file.commit()
        return position, start, left_out

    def __len__(self) -> int:
        return self._count

    def bad_records(self) -> Iterator[BadRecord]:
        """The records left out, in the order of the file."""
        rows = self._file.execute("SELECT line, unit, message FROM bad ORDER BY line, rowid")
        return (BadRecord(Place(str(self._train), line, unit), message) for line, unit, message in rows)

    def groups(self, start: int, stop: int) -> list[ResponseGroup]:
        """The groups at positions from `start` to before `stop`."""
        rows = self._file.execute(_OF_GROUPS.format(columns="r.prompt, r.response, r.reward"), (start, stop))
        found = []
        for (_, key), part in itertools.groupby(rows, key=lambda row: row[:2]):
            prompts, responses, rewards = zip(*(row[2:] for row in part), strict=True)
            found.append(ResponseGroup(_group_id(key), prompts, responses, rewards))
        return found

    def rewards(self, start: int, stop: int) -> list[Rewarded]:
        """The rewards of the groups at positions from `start` to before `stop`."""
        rows = self._file.execute(_OF_GROUPS.format(columns="r.reward"), (start, stop))
        by_group = itertools.groupby(rows, key=lambda row: row[:2])
        return [Rewarded(_group_id(key), tuple(row[2] for row in part)) for (_, key), part in by_group]

    def without_signal(self) -> int:
        """How many groups there are whose rewards are all the same."""
        starts = range(0, len(self), TOGETHER)
        groups = (group for start in starts for group in self.rewards(start, start + TOGETHER))
        return sum(len(set(group.rewards)) == 1 for group in groups)

    def ids(self) -> Iterator[GroupId]:
        """The ids of all groups of the file, those that are not known too."""
        for (key,) in self._file.execute("SELECT DISTINCT key FROM responses WHERE key IS NOT NULL ORDER BY key"):
            yield _group_id(key)

    def offset(self, position: int) -> int:
        """Responses of the known groups before a position."""
        (start,) = self._file.execute("SELECT start FROM groups WHERE position = ?", (position,)).fetchone()
        return int(start)

    def begin_scores(self) -> None:
        """Take scores from here on, in a file of their own: those of an earlier try are gone."""
        place = self._place.with_name("scores.sqlite")
        place.unlink(missing_ok=True)
        self._file.execute("ATTACH DATABASE ? AS given", (str(place),))
        self._file.executescript(_SCORES)

    def score(self, scores: Iterable[Score]) -> None:
        """Put down what groups were given."""
        self._file.executemany("INSERT INTO scores VALUES (?, ?, ?, ?)", scores)
        self._file.commit()

    def scores(self, start: int, stop: int) -> dict[int, Score]:
        """By position, of those groups at positions from `start` to before `stop` that have one."""
        rows = self._file.execute("SELECT * FROM scores WHERE position >= ? AND position < ?", (start, stop))
        return {row[0]: Score(*row) for row in rows}

    def best(self, count: int) -> list[GroupId]:
        """Ids by priority, best first; ties by the id as the scorer has it."""
        rows = self._file.execute(
            "SELECT key FROM scores JOIN groups USING (position) ORDER BY priority DESC, substr(key, 2) LIMIT ?",
            (count,),
        )
        return [_group_id(key) for (key,) in rows]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _opened(place: Path) -> sqlite3.Connection:
    file = sqlite3.connect(place)
    # What a kill leaves half-made is made anew, so no journal is needed.
    file.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;")
    return file


def _is_whole(place: Path) -> bool:
    if not place.exists():
        return False
    with closing(sqlite3.connect(place)) as file:
        try:
            return bool(file.execute("SELECT value FROM facts WHERE name = 'groups'").fetchone())
        except sqlite3.DatabaseError:
            return False


def _encodable(parsed: Response | BadRecord, place: Place) -> Response | BadRecord:
    if isinstance(parsed, BadRecord):
        return parsed
    try:
        for name in ("group_id", "prompt", "response"):
            encodable(name, str(getattr(parsed, name)))
    except Unfit as error:
        return BadRecord(place, f"{error}.")
    return parsed


def _key(group_id: GroupId) -> str:
    """Sorts as `sort_key` does, by bytes."""
    return f"0{group_id:012d}" if isinstance(group_id, int) else f"1{group_id}"


def _group_id(key: str) -> GroupId:
    return int(key[1:]) if key[0] == "0" else key[1:]


def _sample_text(sample: Any) -> str | None:
    """Equal JSON for samples that are equal to Python, or both NaN."""
    if isinstance(sample, (bool, int, float)):
        return json.dumps(int(sample) if math.isfinite(sample) and sample == int(sample) else sample)
    return None if sample is None else json.dumps(sample if isinstance(sample, str) else repr(sample))
