"""What a curve says at equal updates, rollouts and seconds, and what several seeds say together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from gradalign_trainer.reproduce.grid.results import Result
from gradalign_trainer.reproduce.grid.timing import Timing
from gradalign_trainer.world import World
from gradalign_trainer.worlds.builtin import ArithmeticWorld

__all__ = ["BUDGETS", "Difference", "Readings", "best_of", "interval", "paired"]

BUDGETS = ("updates", "rollouts", "seconds")
CLOCK = "cosine"  # equal seconds are what its 60 updates take

# Two-sided 95% points of Student's t, by degrees of freedom from 1.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean difference over seeds that two methods share.

    Attributes:
        mean: of the differences.
        low: end of its 95% t interval; -inf for one seed.
        high: the other end.
        seeds: how many.
    """

    mean: float
    low: float
    high: float
    seeds: int


class Readings:
    """Pass rates by regime, method, budget and seed.

    Args:
        results: of a grid; of two of one cell the longer counts, then the later.
        timing: seconds a round; without that of `cosine` there are no equal seconds.
        world: that the results are of; None for arithmetic.

    Attributes:
        world: that the results are of.
        rollouts: the budget of equal rollouts: the world's, or the fewest of a run where all end at equal updates.
        seconds: the budget of equal seconds; None without times.
    """

    def __init__(self, results: Iterable[Result], timing: Timing, world: World | None = None) -> None:
        self.world = world or ArithmeticWorld()
        self._results = {each.cell: each for each in sorted(results, key=lambda each: each.long)}
        self._timing = timing
        scale = self.world.scale
        fewest = min(
            (float(each.curve["rollouts"][-1] or 0) for each in self._results.values()), default=scale.rollouts
        )
        self.rollouts = scale.rollouts if any(each.long for each in self._results.values()) else int(fewest)
        rounds = scale.updates // scale.updates_per_round
        self.seconds = rounds * timing[CLOCK] if CLOCK in timing else None

    @property
    def results(self) -> Sequence[Result]:
        """One a cell, in the order of cells."""
        return [self._results[cell] for cell in sorted(self._results)]

    def regimes(self) -> list[str]:
        """Those with results, in the order of the world's."""
        return [regime for regime in self.world.regimes if any(cell.regime == regime for cell in self._results)]

    def is_timed(self, method: str) -> bool:
        """Whether there are seconds of its rounds."""
        return method in self._timing

    def of(self, regime: str, method: str, budget: str) -> dict[int, float]:
        """Seed -> held-out pass rate at a budget of `BUDGETS`; a run that ended before it is left out.

        Between two evaluations the pass rate is interpolated linearly.
        """
        found: dict[int, float] = {}
        for cell, result in self._results.items():
            if (cell.regime, cell.method) == (regime, method):
                value = self._read(result, budget)
                if value is not None:
                    found[cell.seed] = value
        return dict(sorted(found.items()))

    def _read(self, result: Result, budget: str) -> float | None:
        curve, method = result.curve, result.cell.method
        if budget == "updates":
            return _interpolated(curve["updates"], curve["pass_rate"], self.world.scale.updates)
        if budget == "rollouts":
            return _interpolated(curve["rollouts"], curve["pass_rate"], self.rollouts)
        if self.seconds is None or method not in self._timing:
            return None
        clock = [float(number or 0) * self._timing[method] for number in curve["round"]]
        return _interpolated(clock, curve["pass_rate"], self.seconds)

    def table(self, regime: str, methods: Sequence[str], budget: str) -> Mapping[str, dict[int, float]]:
        """Of those methods that have any reading: method -> seed -> pass rate."""
        rows = {method: self.of(regime, method, budget) for method in methods}
        return {method: row for method, row in rows.items() if row}


def _interpolated(places: Sequence[float | None], values: Sequence[float | None], at: float) -> float | None:
    """The value at a place, None beyond the last one."""
    known = [(x, y) for x, y in zip(places, values, strict=True) if x is not None and y is not None]
    for (before, low), (after, high) in itertools.pairwise(known):
        if before <= at <= after:
            return high if after == before else low + (high - low) * (at - before) / (after - before)
    return None


def best_of(rows: Mapping[str, Mapping[int, float]], among: Sequence[str]) -> str | None:
    """The method with the highest mean over the seeds that all of them share; None where none has a reading.

    It is picked by the very seeds that others are then compared with, which favours it. Methods with at most
    half of the most seeds stand back.
    """
    most = max((len(rows.get(method, {})) for method in among), default=0)
    whole = {method: rows[method] for method in among if len(rows.get(method, {})) > most / 2}
    shared = set.intersection(*(set(row) for row in whole.values())) if whole else set()
    means = {method: fmean(row[seed] for seed in shared) for method, row in whole.items() if shared}
    return max(means, key=lambda method: means[method]) if means else None


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% t interval of a mean; infinite for one value."""
    if len(values) < 2:
        return -math.inf, math.inf
    degrees = len(values) - 1
    quantile = _T95[degrees - 1] if degrees <= len(_T95) else 1.96 + 2.5 / degrees  # within .01 of the true one
    half = quantile * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def paired(left: Mapping[int, float], right: Mapping[int, float]) -> Difference | None:
    """Left less right over the seeds that both have; None where there is none."""
    shared = sorted(left.keys() & right.keys())
    if not shared:
        return None
    values = [left[seed] - right[seed] for seed in shared]
    return Difference(fmean(values), *interval(values), len(values))
