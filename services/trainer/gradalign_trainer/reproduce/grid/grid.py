"""Plays the cells of a grid that have no result yet, in parallel processes against one scorer."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from gradalign.errors import GradAlignError
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.curriculum.localscorer import local_scorer
from gradalign_trainer.policy.policy import check_generation
from gradalign_trainer.records import RoundReport
from gradalign_trainer.reproduce.grid.cells import Cell, Recipe, cells_of
from gradalign_trainer.reproduce.grid.progress import GridProgress
from gradalign_trainer.reproduce.grid.results import Result, ResultsError, ResultsLog, curve_of
from gradalign_trainer.reproduce.grid.timing import measure_timing, read_timing
from gradalign_trainer.reproduce.grid.worker import WAITING, RoundCounts, play, prepare_base, set_up

__all__ = ["GridSettings", "run_grid"]

logger = logging.getLogger(__name__)

_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half alive

LOOK_EVERY = 1.0  # seconds between looks at how far the cells are


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
        untimed = _untimed(settings)
        logger.info("%d cells to play, %d at a time; %d are done already.", len(waiting), settings.workers, done)
        if not waiting and not untimed:
            return
        counts = _SPAWN.RawArray(ctypes.c_int, [WAITING] * max(len(waiting), 1))
        bar = GridProgress(waiting, settings.workers, console)
        with _pool(settings.workers, counts) as pool, _scorer(settings) as url, bar:
            bases = _bases(pool, settings, waiting)
            if untimed:
                _take_times(pool, settings, untimed, bases, url)
            for cell, seconds, curve in _played(pool, _runs(settings, waiting, bases, url), counts, bar.running):
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
def _pool(workers: int, counts: RoundCounts) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(workers, _SPAWN, set_up, (counts,))
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


def _runs(
    settings: GridSettings, cells: Sequence[Cell], bases: Mapping[int, Path], url: str
) -> list[tuple[TrainConfig, Sequence[Cell]]]:
    """What is to be run, and the cells that have its curve: those of one digest take one run."""
    alike: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        alike[settings.recipe.digest(cell)].append(cell)
    runs: list[tuple[TrainConfig, Sequence[Cell]]] = []
    for same in alike.values():
        cell = same[0]
        output = settings.output / "running" / f"{cell.regime}-{cell.method}-{cell.seed}"
        base = bases[cell.seed % settings.recipe.world.bases]
        runs.append((settings.recipe.config(cell, base, output, url), same))
    return runs


def _played(
    pool: ProcessPoolExecutor,
    runs: Sequence[tuple[TrainConfig, Sequence[Cell]]],
    counts: RoundCounts,
    look: Callable[[Mapping[Cell, tuple[int, int]]], None],
) -> Iterator[tuple[Cell, float, dict[str, list[float | None]]]]:
    """Cells as they finish, with the seconds of their rounds and their curves; `look` is shown the rounds of the others."""
    futures = {pool.submit(play, config, number): number for number, (config, _) in enumerate(runs)}
    waiting = set(futures)
    while waiting:
        ended, waiting = wait(waiting, LOOK_EVERY, FIRST_COMPLETED)
        for future in ended:
            same = runs[futures[future]][1]
            reports = _reports(future, same[0])
            curve = curve_of(reports)
            for cell in same:
                yield cell, reports[-1].figures["seconds"] / len(same), curve
        going: dict[Cell, tuple[int, int]] = {}
        for future in waiting:
            config, same = runs[futures[future]]
            count = counts[futures[future]]
            if count != WAITING:
                going[same[0]] = count, config.rounds
        look(going)


def _reports(future: Future[Sequence[RoundReport]], cell: Cell) -> Sequence[RoundReport]:
    kept = "Finished cells are kept; run the same command again to go on."
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise GradAlignError(f"a process of the grid was killed (out of memory, or by hand). {kept}") from error
    except RuntimeError as error:
        raise GradAlignError(f"{cell}: {error}\n{kept}") from error
