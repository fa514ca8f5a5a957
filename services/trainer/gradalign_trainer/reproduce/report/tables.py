"""The tables of a grid as Markdown: a regime each, a method a row, the three budgets side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from gradalign_trainer.reproduce.grid.methods import BASELINES, METHODS, PAPER_BASELINES, TUNED_ON
from gradalign_trainer.reproduce.report.readings import BUDGETS, Difference, Readings, best_of, paired

__all__ = ["regime_table", "results_page"]

PAPERS = "cosine"
OURS = (
    PAPERS,
    "forward",
    "shrunken",
    "weights",
    "in-batch",
    "in-batch+val",
    "forward-weights",
    "forward-weights+val",
    "rollout-weights",
)


def results_page(readings: Readings) -> str:
    """The headlines, then the tables of the regimes, a heading each."""
    parts: list[str] = []
    for title, lines in (("updates", updates_headline(readings)), ("cost", cost_headline(readings))):
        parts += [f"### At equal {title}\n", lines] if lines else []
    told = readings.world.regimes
    parts += [f"### {regime}: {told[regime]}\n\n{regime_table(readings, regime)}" for regime in readings.regimes()]
    return "\n".join(parts)


def updates_headline(readings: Readings) -> str:
    """`cosine` against the best of the paper's baselines, and against the best of all; a regime a row, empty without any."""
    lines = [["regime", f"`{PAPERS}`", "less the best of the paper's", "less the best of all"]]
    for regime in readings.regimes():
        rows = readings.table(regime, list(METHODS), "updates")
        if PAPERS in rows:
            told = [_against(rows, PAPERS, best_of(rows, rivals)) for rivals in (PAPER_BASELINES, BASELINES)]
            lines.append([regime, _mean(rows[PAPERS]), *told])
    return _markdown(lines) if len(lines) > 1 else ""


def cost_headline(readings: Readings) -> str:
    """`OURS` against the best of all baselines at equal rollouts and equal seconds; empty where nothing was read there."""
    regimes = readings.regimes()
    read = {
        budget: {regime: _ours(readings, regime, budget) for regime in regimes} for budget in ("rollouts", "seconds")
    }
    columns = {budget: rows for budget, rows in read.items() if any(rows.values())}
    lines = [
        ["regime", "method", *(cell for each in columns for cell in (_title(each, readings), "less the best of all"))]
    ]
    for regime in regimes:
        best = {budget: best_of(rows[regime], BASELINES) for budget, rows in columns.items()}
        for method in OURS:
            if any(method in rows[regime] for rows in columns.values()):
                lines.append([regime, f"`{method}`"])
                for budget, rows in columns.items():
                    own = rows[regime].get(method)
                    lines[-1] += [_mean(own), _against(rows[regime], method, best[budget])] if own else ["", ""]
    return _markdown(lines) if columns else ""


def _ours(readings: Readings, regime: str, budget: str) -> dict[str, dict[int, float]]:
    """The rows of a budget, without the seeds a method was tuned on; none where `OURS` has no reading."""
    tuned = TUNED_ON.get(readings.world.name, {})
    rows = {
        method: {seed: rate for seed, rate in row.items() if seed not in tuned.get(method, ())}
        for method, row in readings.table(regime, list(METHODS), budget).items()
    }
    return {method: row for method, row in rows.items() if row} if any(rows.get(each) for each in OURS) else {}


def _against(rows: Mapping[str, Mapping[int, float]], method: str, best: str | None) -> str:
    return f"{best}: {difference_text(paired(rows[method], rows[best]))}" if best else ""


def _mean(row: Mapping[int, float]) -> str:
    return f"{_short(fmean(row.values()))} ({len(row)})"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in ruled)


def regime_table(readings: Readings, regime: str) -> str:
    """One regime: mean, standard deviation and seeds of each method, and the difference to the best baseline."""
    columns = {budget: readings.table(regime, list(METHODS), budget) for budget in BUDGETS}
    best = {budget: best_of(columns[budget], BASELINES) for budget in BUDGETS}
    shown = [budget for budget in BUDGETS if best[budget]] or ["updates"]  # no column that compares nothing
    head = [
        "method",
        *(cell for budget in shown for cell in (_title(budget, readings), f"less {best[budget] or 'none'}")),
    ]
    lines = [head]
    for method in METHODS:
        if any(method in columns[budget] for budget in shown):
            lines.append([method])
            for budget in shown:
                untimed = budget == "seconds" and not readings.is_timed(method)
                lines[-1] += _pair(columns[budget], method, best[budget], "not timed" if untimed else "ended before")
    base = fmean(result.curve["pass_rate"][0] or 0.0 for result in readings.results if result.cell.regime == regime)
    return f"Before training: {_short(base)} in the mean.\n\n{_markdown(lines)}"


def _title(budget: str, readings: Readings) -> str:
    if budget == "updates":
        return f"{readings.world.scale.updates} updates"
    return f"{readings.rollouts:,} rollouts" if budget == "rollouts" else f"{readings.seconds or 0:.1f} s"


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
