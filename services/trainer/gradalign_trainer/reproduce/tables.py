"""The tables of a grid as Markdown: a regime each, a method a row, the three budgets side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from gradalign_trainer.reproduce.cells import ROLLOUTS, UPDATES
from gradalign_trainer.reproduce.methods import BASELINES, METHODS, PAPER_BASELINES
from gradalign_trainer.reproduce.readings import BUDGETS, Difference, Readings, best_of, paired
from gradalign_trainer.worlds import REGIMES

__all__ = ["regime_table", "results_page"]

OURS = "cosine"
RIVALS: Mapping[str, Sequence[str]] = {"updates": PAPER_BASELINES, "rollouts": BASELINES, "seconds": BASELINES}
"""Budget -> the baselines whose best the others are compared with."""


def results_page(readings: Readings) -> str:
    """The headline, then the tables of the regimes, a heading each."""
    parts = [headline(readings)]
    parts += [f"### {regime}: {REGIMES[regime]}\n\n{regime_table(readings, regime)}" for regime in readings.regimes()]
    return "\n".join(parts)


def headline(readings: Readings) -> str:
    """`cosine` against the best baseline of each budget, a regime a row."""
    budgets = [budget for budget in BUDGETS if any(readings.of(regime, OURS, budget) for regime in readings.regimes())]
    head = ["regime", f"`{OURS}`", *(f"at equal {budget}, less" for budget in budgets)]
    lines = [head, ["---"] * len(head)]
    for regime in readings.regimes():
        ours = list(readings.of(regime, OURS, "updates").values())
        lines.append([regime, _short(fmean(ours)) if ours else ""])
        for budget in budgets:
            rows = readings.table(regime, list(METHODS), budget)
            best = best_of(rows, RIVALS[budget])
            told = f"{best}: {difference_text(paired(rows[OURS], rows[best]))}" if best and OURS in rows else ""
            lines[-1].append(told)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def regime_table(readings: Readings, regime: str) -> str:
    """One regime: mean, standard deviation and seeds of each method, and the difference to the best baseline."""
    columns = {budget: readings.table(regime, list(METHODS), budget) for budget in BUDGETS}
    best = {budget: best_of(columns[budget], RIVALS[budget]) for budget in BUDGETS}
    shown = [budget for budget in BUDGETS if best[budget]] or ["updates"]  # no column that compares nothing
    head = [
        "method",
        *(cell for budget in shown for cell in (_title(budget, readings), f"less {best[budget] or 'none'}")),
    ]
    lines = [head, ["---"] * len(head)]

    for method in METHODS:
        if any(method in columns[budget] for budget in shown):
            lines.append([method])
            for budget in shown:
                untimed = budget == "seconds" and not readings.is_timed(method)
                lines[-1] += _pair(columns[budget], method, best[budget], "not timed" if untimed else "ended before")
    base = fmean(result.curve["pass_rate"][0] or 0.0 for result in readings.results if result.cell.regime == regime)
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"Before training: {_short(base)} in the mean.\n\n{table}"


def _title(budget: str, readings: Readings) -> str:
    if budget == "updates":
        return f"{UPDATES} updates"
    return f"{ROLLOUTS:,} rollouts" if budget == "rollouts" else f"{readings.seconds or 0:.1f} s"


def _pair(column: Mapping[str, Mapping[int, float]], method: str, best: str | None, missing: str) -> tuple[str, str]:
    """What stands in a budget's two cells."""
    if method not in column:
        return missing, ""
    values = list(column[method].values())
    spread = f" ± {_short(stdev(values))}" if len(values) > 1 else ""
    mean = f"{_short(fmean(values))}{spread} ({len(values)})"
    if best is None or method == best:
        return (f"*{mean}*" if method == best else mean), ""
    return mean, difference_text(paired(column[method], column[best]))


def difference_text(difference: Difference | None) -> str:
    """`+.123 [+.100, +.146] ▲`: the mark where the whole interval is on one side of zero."""
    if difference is None:
        return ""
    mean = _signed(difference.mean)
    if math.isinf(difference.low):
        return mean
    mark = " ▲" if difference.low > 0 else " ▼" if difference.high < 0 else ""
    return f"{mean} [{_signed(difference.low)}, {_signed(difference.high)}]{mark}"


def _short(rate: float) -> str:
    return f"{rate:.3f}".removeprefix("0") if 0 <= rate < 1 else f"{rate:.3f}"


def _signed(rate: float) -> str:
    text = f"{rate:+z.3f}"
    return text[0] + text[1:].removeprefix("0")
