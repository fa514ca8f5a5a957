"""Progress of what takes more than a few seconds: bars on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gradalign_trainer.records import Observer, RoundReport

__all__ = ["Advance", "RunProgress", "TellsProgress", "Together", "no_progress", "show_progress"]

logger = logging.getLogger(__name__)

Advance = Callable[[float], None]
"""Called with how much more is done."""

LINE_EVERY = 10.0  # seconds between log lines where there is no terminal


class TellsProgress(Protocol):
    """What a function that takes long accepts to tell how far it is: `no_progress` or `show_progress`."""

    def __call__(self, description: str, total: float | None) -> AbstractContextManager[Advance]:
        """Begin a task of `total` units (None where that is unknown); the block is given its `Advance`."""


@contextmanager
def no_progress(description: str, total: float | None) -> Iterator[Advance]:  # noqa: ARG001
    """Tells nobody."""
    yield lambda amount: None  # noqa: ARG005


@contextmanager
def show_progress(
    description: str,
    total: float | None,
    *,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """A bar on stderr where that is a terminal; else a log line every 10 seconds, so that what is quick says nothing.

    Args:
        description: what is being done.
        total: units in all; None where that is unknown.
        console: where to draw; stderr where None.
        clock: of the log lines.
    """
    console = console or Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda amount: bar.advance(task, amount)
        return
    yield _Lines(description, total, clock).advance


class _Lines:
    def __init__(self, description: str, total: float | None, clock: Callable[[], float]) -> None:
        self.description, self.total, self.clock = description, total, clock
        self.done = 0.0
        self.begun = self.told = clock()

    def advance(self, amount: float) -> None:
        self.done += amount
        now = self.clock()
        if now - self.told < LINE_EVERY:
            return
        self.told = now
        if not self.total:
            logger.info("%s: %s", self.description, f"{self.done:,.0f}")
            return
        left = ""
        if self.done:
            left = f", about {_span(max(self.total - self.done, 0.0) * (now - self.begun) / self.done)} left"
        logger.info("%s: %.0f%%%s", self.description, 100 * self.done / self.total, left)


def _span(seconds: float) -> str:
    """A time as one reads it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class RunProgress:
    """Follows a run: two bars (rounds, and the stage of the round) on a terminal, one log line a round elsewhere.

    Args:
        rounds: of the whole run.
        description: stands before the bar of rounds.
        console: where to draw; stderr where None.
    """

    def __init__(self, rounds: int, *, description: str = "rounds", console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bars = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._rounds, self._description = rounds, description
        self._round = self._bars.add_task(description, total=rounds, note="")
        self._stage = self._bars.add_task("starting", total=None, note="")

    def stage(self, name: str, total: int) -> None:
        """A stage of the round begins."""
        self._bars.reset(self._stage, total=total, description=f"  {name}")

    def advance(self, amount: int = 1) -> None:
        """So many more of the stage are done."""
        self._bars.advance(self._stage, amount)

    def report(self, report: RoundReport) -> None:
        """A round is over."""
        figures = {} if report.pass_rate is None else {"pass rate": report.pass_rate}
        if "reward" in report.figures:
            figures["reward"] = report.figures["reward"]
        note = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        self._bars.update(self._round, completed=report.round_number, note=note)
        if not self._console.is_terminal:
            logger.info("%s: %d of %d  %s", self._description, report.round_number, self._rounds, note)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


class Together:
    """Several observers of a run as one.

    Args:
        observers: told in this order.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def stage(self, name: str, total: int) -> None:
        """A stage of the round begins."""
        for observer in self._observers:
            observer.stage(name, total)

    def advance(self, amount: int = 1) -> None:
        """So many more of the stage are done."""
        for observer in self._observers:
            observer.advance(amount)

    def report(self, report: RoundReport) -> None:
        """A round is over."""
        for observer in self._observers:
            observer.report(report)
