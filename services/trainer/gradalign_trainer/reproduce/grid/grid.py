"""Plays the cells of a grid that have no result yet, in parallel processes against one scorer."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gradalign.errors import GradAlignError
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.curriculum.localscorer import local_scorer
from gradalign_trainer.policy.policy import check_generation
from gradalign_trainer.records import RoundReport
from gradalign_trainer.reproduce.grid.cells import Cell, Recipe, cells_of
from gradalign_trainer.reproduce.grid.results import Result, ResultsError, ResultsLog, curve_of
from gradalign_trainer.reproduce.grid.timing import measure_timing, read_timing
from gradalign_trainer.reproduce.grid.worker import play, prepare_base, set_up

__all__ = ["GridSettings", "run_grid"]

logger = logging.getLogger(__name__)

LINE_EVERY = 30.0  # seconds between log lines where there is no terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSettings:
    """What to run.

    Attributes:
        output: folder of the results.
        regimes: of the recipe's world.
        methods: keys of `METHODS`.
        seeds: how many; they are 0, 1, ...
        recipe: how the cells are run.
        workers: cells at a time.
        scorer_url: scorer to use; None starts one.
    """

    output: Path
    regimes: Sequence[str]
    methods: Sequence[str]
    seeds: int
    recipe: Recipe = field(default_factory=Recipe)
    workers: int = 2
    scorer_url: str | None = None


def run_grid(settings: GridSettings, console: Console) -> None:
    """Play every cell that has no result yet, and add its result.

    Args:
        settings: what to run.
        console: for progress.

    Raises:
        GradAlignError: vLLM is to generate and cannot; a cell failed, its process was killed, or the results are of other
            settings. What is finished is kept; the same command goes on from there.
    """
    check_generation(_first_config(settings))
    with ResultsLog(settings.output) as log:
        waiting = _waiting(settings, log.results)
        done = len(cells_of(settings.regimes, settings.methods, settings.seeds)) - len(waiting)
        if done:
            logger.info("%d cells are done already, %d are left.", done, len(waiting))
        untimed = _untimed(settings)
        if not waiting and not untimed:
            return
        with _pool(settings.workers) as pool, _scorer(settings) as url, _Progress(waiting, settings, console) as bar:
            bases = _bases(pool, settings, waiting)
            if untimed:
                _take_times(pool, settings, untimed, bases, url)
            for cell, seconds, curve in _played(pool, settings, waiting, bases, url):
                log.add(Result(cell, settings.recipe.digest(cell), settings.recipe.long, curve))
                bar.finished(cell, seconds)


def _waiting(settings: GridSettings, results: Sequence[Result]) -> list[Cell]:
    """Cells without a result; a result of equal updates alone does not do where more is asked for."""
    cells = cells_of(settings.regimes, settings.methods, settings.seeds)
    digests = {cell: settings.recipe.digest(cell) for cell in cells}
    stranger = next((each.cell for each in results if digests.get(each.cell, each.digest) != each.digest), None)
    if stranger is not None:
        raise ResultsError(
            f"{settings.output} holds a result of {stranger} with other settings than this version of gradalign runs; "
            "results of both cannot share a table. Give another --output, or move the folder away."
        )
    done = {each.cell for each in results if each.long or not settings.recipe.long}
    return [cell for cell in cells if cell not in done]


def _untimed(settings: GridSettings) -> list[str]:
    """Methods that equal seconds are read of, and that no time was taken of."""
    timing = read_timing(settings.output)
    return [method for method in settings.methods if method not in timing] if settings.recipe.long else []


def _first_config(settings: GridSettings) -> TrainConfig:
    """Of the first cell, whose model and device are those of all."""
    first = Cell(0, settings.regimes[0], settings.methods[0])
    return settings.recipe.config(first, Path("base"), settings.output, None)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # A fork would copy torch's threads half alive.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), set_up)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _scorer(settings: GridSettings) -> Iterator[str]:
    with nullcontext(settings.scorer_url) if settings.scorer_url else local_scorer() as url:
        yield url


def _bases(pool: ProcessPoolExecutor, settings: GridSettings, cells: Sequence[Cell]) -> Mapping[int, Path]:
    """Base models by seed modulo their number, all that the cells need, made side by side where missing."""
    world, first = settings.recipe.world, _first_config(settings)
    needed = sorted({0, *(cell.seed % world.bases for cell in cells)})  # methods are timed on the first
    futures = {number: pool.submit(prepare_base, first, world, number) for number in needed}
    try:
        return {number: Path(future.result()) for number, future in futures.items()}
    except RuntimeError as error:
        raise GradAlignError(str(error)) from error


def _take_times(
    pool: ProcessPoolExecutor, settings: GridSettings, methods: Sequence[str], bases: Mapping[int, Path], url: str
) -> None:
    """Before the first cell, so that nothing else runs."""
    logger.info("Timing %d methods, one at a time.", len(methods))
    cells = [Cell(0, settings.regimes[0], method) for method in methods]
    base, folder = bases[0], settings.output / "running" / "timing"
    configs = {cell.method: settings.recipe.config(cell, base, folder, url) for cell in cells}
    pool.submit(measure_timing, settings.output, configs).result()


def _played(
    pool: ProcessPoolExecutor, settings: GridSettings, cells: Sequence[Cell], bases: Mapping[int, Path], url: str
) -> Iterator[tuple[Cell, float, dict[str, list[float | None]]]]:
    """Cells as they finish, with the seconds of their rounds and their curves; cells of one digest take one run."""
    alike: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        alike[settings.recipe.digest(cell)].append(cell)
    futures: dict[Future[Sequence[RoundReport]], list[Cell]] = {}
    for same in alike.values():
        cell = same[0]
        output = settings.output / "running" / f"{cell.regime}-{cell.method}-{cell.seed}"
        config = settings.recipe.config(cell, bases[cell.seed % settings.recipe.world.bases], output, url)
        futures[pool.submit(play, config)] = same
    for future in as_completed(futures):
        same = futures[future]
        try:
            reports = future.result()
        except BrokenProcessPool as error:
            raise GradAlignError(
                "a process of the grid was killed (out of memory, or by hand). Finished cells are kept; run the same "
                "command again to go on."
            ) from error
        except RuntimeError as error:
            raise GradAlignError(
                f"{same[0]}: {error}\nFinished cells are kept; run the same command again to go on."
            ) from error
        curve = curve_of(reports)
        for cell in same:
            yield cell, reports[-1].figures["seconds"] / len(same), curve


class _Progress:
    """A bar of cells with an estimate of the time left; log lines where there is no terminal."""

    def __init__(self, cells: Sequence[Cell], settings: GridSettings, console: Console) -> None:
        self._left, self._workers = list(cells), min(settings.workers, len(cells))
        self._took: dict[str, list[float]] = defaultdict(list)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        shown = console.is_terminal
        self._bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=console, disable=not shown)
        self._bar = self._bars.add_task("cells", total=len(cells), note="preparing base models and processes")
        self._told = time.monotonic()

    def finished(self, cell: Cell, seconds: float) -> None:
        """Show a cell that is done."""
        self._left.remove(cell)
        self._took[cell.method].append(seconds)
        left = f"about {self._seconds_left() / 60:.0f} min left"
        self._bars.update(self._bar, advance=1, note=f"{left}; last {cell}")
        if self._bars.disable and (time.monotonic() - self._told > LINE_EVERY or not self._left):
            self._told = time.monotonic()
            logger.info("%d cells left, %s; last %s", len(self._left), left, cell)

    def _seconds_left(self) -> float:
        """Cells of a method take as long as those of it before, of a new one as long as all did."""
        overall = fmean([seconds for each in self._took.values() for seconds in each])
        each = [fmean(self._took[cell.method]) if self._took[cell.method] else overall for cell in self._left]
        return sum(each) / self._workers

    def __enter__(self) -> _Progress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()
