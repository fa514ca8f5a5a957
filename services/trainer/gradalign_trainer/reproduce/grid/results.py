"""`results.jsonl`: one finished cell a line, appended and never rewritten.

A grid that was killed goes on where it stopped: what has a line is done, what has none is run again from its start.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gradalign.errors import GradAlignError
from gradalign_trainer.records import RoundReport
from gradalign_trainer.reproduce.grid.cells import Cell

__all__ = ["COLUMNS", "Result", "ResultsError", "ResultsLog", "curve_of", "read_results"]

FILE = "results.jsonl"
_CUMULATIVE = ("rollouts", "seconds", "cpu_seconds")
_AVERAGED = ("trained_good", "weight_good", "weight_bad", "alignment_good", "alignment_bad", "coherence", "reliability")
COLUMNS = ("round", "updates", *_CUMULATIVE, "pass_rate", *_AVERAGED)
"""Of a curve, where they apply: sums since the start, the held-out pass rate, and means since the evaluation before."""


class ResultsError(GradAlignError):
    """The results of a grid cannot be read or added to."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished cell.

    Attributes:
        cell: which.
        digest: of its settings.
        long: whether it went on past the equal updates.
        curve: column -> values, one an evaluation, from before the first round on; the names are `COLUMNS`.
    """

    cell: Cell
    digest: str
    long: bool
    curve: Mapping[str, Sequence[float | None]]

    def line(self) -> str:
        """The JSON of it."""
        cell = {"seed": self.cell.seed, "regime": self.cell.regime, "method": self.cell.method}
        return json.dumps({**cell, "digest": self.digest, "long": self.long, "curve": self.curve})

    @classmethod
    def parse(cls, text: str) -> Result:
        """Of its JSON; ValueError, KeyError or TypeError where it is none."""
        row: Mapping[str, Any] = json.loads(text)
        cell = Cell(int(row["seed"]), str(row["regime"]), str(row["method"]))
        return cls(cell, str(row["digest"]), bool(row["long"]), dict(row["curve"]))


def curve_of(reports: Sequence[RoundReport]) -> dict[str, list[float | None]]:
    """The curve of a run, one entry an evaluation; figures of the rounds between are averaged, four digits kept."""
    curve: dict[str, list[float | None]] = {name: [] for name in COLUMNS}
    since: list[RoundReport] = []
    for report in reports:
        since.append(report)
        if report.pass_rate is None:
            continue
        curve["round"].append(report.round_number)
        curve["updates"].append(report.policy_version)
        curve["pass_rate"].append(round(report.pass_rate, 4))
        for name in _CUMULATIVE:
            curve[name].append(round(report.figures.get(name, 0.0), 2))
        for name in _AVERAGED:
            told = [each.figures[name] for each in since if name in each.figures]
            curve[name].append(round(sum(told) / len(told), 4) if told else None)
        since = []
    return {name: values for name, values in curve.items() if any(value is not None for value in values)}


def read_results(folder: Path) -> list[Result]:
    """The finished cells of a grid, in the order they finished; none where there is no file. A torn last line is no result.

    Raises:
        ResultsError: a line is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    results = []
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            results.append(Result.parse(text))
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(
                f"{path}:{number} is no result ({error!r}): {text[:80]!r}. Expected a JSON object with seed, regime, "
                "method, digest, long and curve. Remove the line; its cell will be run again."
            ) from error
    return results


class ResultsLog:
    """Adds results to a grid's file; a context manager, one at a time.

    Args:
        folder: of the grid; made where missing.

    Raises:
        ResultsError: another grid is writing there, or a line is damaged.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / FILE).open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ResultsError(
                f"another gradalign reproduce is writing to {folder / FILE}; wait for it, or give another --output."
            ) from error
        whole = (folder / FILE).read_bytes().rpartition(b"\n")[:2]
        self._file.truncate(len(b"".join(whole)))  # a torn line is of a process that ended while it wrote
        self.results = read_results(folder)

    def add(self, result: Result) -> None:
        """Write a result, and have the disk take it."""
        self._file.write(result.line().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.results.append(result)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
