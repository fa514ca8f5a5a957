"""What a grid shows while it goes: cells that are done, how far those are that run, and an estimate of the time left."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gradalign_trainer.reproduce.grid.cells import Cell

__all__ = ["GridProgress"]

logger = logging.getLogger(__name__)

LINE_EVERY = 30.0  # seconds between log lines where there is no terminal


class GridProgress:
    """A bar of cells, and one for each that runs; log lines where there is no terminal. A context manager.

    Args:
        cells: that are to be played.
        workers: cells at a time.
        console: where to draw.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        workers: int,
        console: Console,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._left, self._count, self._workers = list(cells), len(cells), min(workers, len(cells))
        self._took: dict[str, list[float]] = defaultdict(list)
        self._done: Mapping[Cell, tuple[int, int]] = {}
        self._began: dict[Cell, float] = {}
        self._clock = clock
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        shown = console.is_terminal
        self._bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=console, disable=not shown)
        self._bar = self._bars.add_task("cells", total=len(cells), note="preparing base models and processes")
        self._running: dict[Cell, TaskID] = {}
        self._told = clock()

    def running(self, done: Mapping[Cell, tuple[int, int]]) -> None:
        """Show how many rounds are done of each cell that runs, and of how many."""
        self._done = done
        for cell, (count, rounds) in done.items():
            if cell not in self._began:
                self._began[cell] = self._clock()
                self._running[cell] = self._bars.add_task(f"  {cell}", total=rounds, note="")
            self._bars.update(self._running[cell], completed=count)
        self._show()

    def finished(self, cell: Cell, seconds: float) -> None:
        """Show a cell that is done, of so many seconds."""
        self._left.remove(cell)
        self._took[cell.method].append(seconds)
        self._done = {each: count for each, count in self._done.items() if each != cell}
        if cell in self._running:
            self._bars.remove_task(self._running.pop(cell))
        self._bars.advance(self._bar)
        self._show(last=cell)

    def _show(self, last: Cell | None = None) -> None:
        seconds = self._seconds_left()
        left = "" if seconds is None else f", about {seconds / 60:.0f} min left"
        self._bars.update(self._bar, note=left.removeprefix(", ") or "no time known yet")
        due = self._clock() - self._told > LINE_EVERY
        if self._bars.disable and (due or (last and not self._left)):
            self._told = self._clock()
            now = "; ".join(f"{cell}: {count} of {rounds} rounds" for cell, (count, rounds) in self._done.items())
            done = self._count - len(self._left)
            logger.info("%d of %d cells done%s%s", done, self._count, left, f"; now {now}" if now else "")

    def _seconds_left(self) -> float | None:
        """Cells of a method take as long as its earlier ones, or as its first seems to; of a new one as long as all do."""
        took: dict[str, Sequence[float]] = {method: each for method, each in self._took.items() if each}
        for cell, (count, rounds) in self._done.items():
            if count and not self._took[cell.method]:
                spent = self._clock() - self._began[cell]
                took[cell.method] = [*took.get(cell.method, ()), spent * rounds / count]
        if not took:
            return None
        overall = fmean([seconds for each in took.values() for seconds in each])
        return (
            sum(self._share_left(cell) * fmean(took.get(cell.method, [overall])) for cell in self._left) / self._workers
        )

    def _share_left(self, cell: Cell) -> float:
        count, rounds = self._done.get(cell, (0, 1))
        return 1 - count / rounds

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()
