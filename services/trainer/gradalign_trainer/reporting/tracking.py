"""Metrics of a run: one JSON object a line in `metrics.jsonl`, and tensorboard or wandb where asked for.

Every line is flushed when it is written. A run that resumes from the checkpoint of round N drops the lines after
round N, so the file reads as if the run had never stopped.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from gradalign.errors import GradAlignError
from gradalign_trainer.records import RoundReport

__all__ = ["TRACKERS", "MetricsError", "MetricsLog", "Tracker", "read_metrics"]

FILE = "metrics.jsonl"


class MetricsError(GradAlignError):
    """The metrics of a run cannot be written or read."""


class Tracker(Protocol):
    """Where metrics go besides the file."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the finite figures of a round."""

    def close(self) -> None:
        """Write what is pending."""


class _Tensorboard:
    def __init__(self, folder: Path, run_id: str, resume_round: int | None) -> None:  # noqa: ARG002
        module: Any = importlib.import_module("torch.utils.tensorboard")
        purge = None if resume_round is None else resume_round + 1
        self._writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, folder: Path, run_id: str, resume_round: int | None) -> None:
        wandb: Any = importlib.import_module("wandb")
        resume = None if resume_round is None else "allow"
        self._run = wandb.init(project="gradalign", id=run_id, name=run_id, dir=str(folder), resume=resume)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()


_TRACKERS: Mapping[str, Callable[[Path, str, int | None], Tracker]] = {"tensorboard": _Tensorboard, "wandb": _Wandb}
TRACKERS = tuple(_TRACKERS)


def _make_tracker(name: str, folder: Path, run_id: str, resume_round: int | None) -> Tracker:
    if name not in _TRACKERS:
        raise MetricsError(f"tracker {name!r} is unknown; expected one of {', '.join(TRACKERS)}.")
    try:
        return _TRACKERS[name](folder, run_id, resume_round)
    except ImportError as error:
        raise MetricsError(
            f"tracker {name!r} was asked for and cannot be imported ({error}). Install it (pip install {name}) or "
            f"drop it from tracking.trackers; metrics always go to {folder / FILE}."
        ) from error


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file; a torn last line is left out."""
    raw = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(raw, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({**row, "round": int(row["round"])})
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            if number == len(raw):  # no newline after it: the process ended while it was written
                break
            raise MetricsError(
                f"{path}:{number} is no line of metrics ({error!r}): {line[:80]!r}. "
                "Expected a JSON object with the key 'round'; remove the line, or move the file away."
            ) from error
    return rows


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, oldest first.

    Raises:
        MetricsError: the file is not there, or a line other than a torn last one is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise MetricsError(f"{path} does not exist; expected the output folder of a run that has begun.")
    return _lines(path)


def _json_value(value: Any) -> Any:
    """NaN and infinities as null, which every JSON reader takes."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsLog:
    """Writes the metrics of one run; an observer of the loop, and a context manager.

    Args:
        folder: output folder of the run; made if it is not there.
        run_id: of the run; names it in trackers.
        resume_round: the round of the checkpoint that the run resumes from, 0 where there is none yet; None for a run
            that begins. Lines after that round are dropped, all of them for 0.
        trackers: `tensorboard`, `wandb`.

    Raises:
        MetricsError: the folder holds metrics and nothing is resumed, the file is damaged, or a tracker is not there.
    """

    def __init__(
        self, folder: str | Path, *, run_id: str = "run", resume_round: int | None = None, trackers: Sequence[str] = ()
    ) -> None:
        self.path = Path(folder) / FILE
        Path(folder).mkdir(parents=True, exist_ok=True)
        with ExitStack() as made:
            self._trackers = []
            for name in trackers:
                tracker = _make_tracker(name, Path(folder), run_id, resume_round)
                made.callback(tracker.close)
                self._trackers.append(tracker)
            self._prepare(resume_round)
            made.pop_all()
        self._file = self.path.open("a", encoding="utf-8")

    def _prepare(self, resume_round: int | None) -> None:
        """Cut the file back to the resumed round, whole or not at all."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return
        if resume_round is None:
            raise MetricsError(
                f"{self.path} holds the metrics of an earlier run; expected an empty output folder. Resume that run "
                "(--resume), or give this one another output folder."
            )
        kept = [row for row in _lines(self.path) if resume_round > 0 and row["round"] <= resume_round]
        temporary = self.path.with_suffix(".jsonl.new")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def write(self, round_number: int, figures: Mapping[str, Any]) -> None:
        """Append one line: `round`, `time` (seconds since 1970), and the figures.

        Args:
            round_number: rounds done.
            figures: by name; numbers, strings or None. NaN and infinities are written as null.
        """
        clean = {name: _json_value(value) for name, value in figures.items()}
        line = json.dumps({"round": round_number, "time": round(time.time(), 3), **clean})
        self._file.write(line + "\n")
        self._file.flush()
        numbers = {
            name: float(value)
            for name, value in clean.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for tracker in self._trackers:
            tracker.write(round_number, numbers)

    def report(self, report: RoundReport) -> None:
        """Append the line of a round; `pass_rate` only where the round was evaluated."""
        rate = {} if report.pass_rate is None else {"pass_rate": report.pass_rate}
        self.write(report.round_number, {"policy_version": report.policy_version, **rate, **report.figures})

    def stage(self, name: str, total: int) -> None:
        """Nothing; rounds are what is written."""

    def advance(self, amount: int = 1) -> None:
        """Nothing; rounds are what is written."""

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
