"""The plots of a grid: learning curves, what was trained on, and alignments of good and bad problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradalign_trainer.reproduce.grid.results import Result
from gradalign_trainer.reproduce.report.readings import Readings

__all__ = ["draw_pictures"]

STYLES: Mapping[str, tuple[str, str]] = {
    "random": ("#8a8f98", "-"),
    "full": ("#57606a", "--"),
    "posterior": ("#8250df", "-"),
    "accgreedy": ("#9a6700", "-"),
    "learnalign": ("#1a7f37", "-"),
    "cosine": ("#1f6feb", "-"),
    "full+val": ("#d1242f", "--"),
    "validation-only": ("#d1242f", "-."),
    "validation-all": ("#d1242f", ":"),
    "dapo": ("#bf3989", "--"),
    "in-batch": ("#54aeff", "-."),
    "in-batch+val": ("#0a3069", "-."),
    "weights": ("#54aeff", ":"),
    "forward-weights": ("#0969da", "--"),
    "forward-weights+val": ("#0a3069", "--"),
    "oracle": ("#24292f", ":"),
}
"""Method -> colour and line; the others are in the tables only."""

POINTS = 61


def draw_pictures(readings: Readings, folder: Path) -> list[Path]:
    """Write the PNGs that there are results for; their paths.

    Args:
        readings: of a grid.
        folder: for the pictures; must exist.
    """
    regimes, scale = readings.regimes(), readings.world.scale
    panels = {regime: [each for each in readings.results if each.cell.regime == regime] for regime in regimes}
    written = [
        _draw(panels, folder / "curves-updates.png", ("updates", scale.updates), ("pass_rate", "held-out pass@1")),
        _draw(
            panels,
            folder / "composition.png",
            ("updates", scale.updates),
            ("trained_good", "good among those trained on"),
        ),
        _draw_alignments(panels, folder / "alignments.png", scale.updates),
    ]
    far = {
        regime: [each for each in results if _reaches(each, readings.rollouts)] for regime, results in panels.items()
    }
    far = {regime: results for regime, results in far.items() if results}
    if far:
        x = ("rollouts", readings.rollouts)
        written.append(_draw(far, folder / "curves-rollouts.png", x, ("pass_rate", "held-out pass@1")))
    return written


def _reaches(result: Result, rollouts: float) -> bool:
    # A run that ends before would cut the band of its method off for all seeds.
    return (result.curve["rollouts"][-1] or 0) >= rollouts


def _band(results: Sequence[Result], x: str, y: str, end: float) -> tuple[Any, Any, Any] | None:
    """Places [POINTS], mean and standard deviation over seeds there, from the curves that have the column."""
    places, rows = np.linspace(0, end, POINTS), []
    for result in results:
        if y not in result.curve:
            continue
        pairs = zip(result.curve[x], result.curve[y], strict=True)
        known = np.array([(a, b) for a, b in pairs if a is not None and b is not None], dtype=float)
        inside = (places >= known[0, 0]) & (places <= known[-1, 0])
        rows.append(np.where(inside, np.interp(places, known[:, 0], known[:, 1]), np.nan))
    if not rows:
        return None
    table = np.stack(rows)
    whole = ~np.isnan(table).any(axis=0)
    return places[whole], table[:, whole].mean(axis=0), table[:, whole].std(axis=0)


def _figure(panels: Mapping[str, Any], label: str) -> tuple[Any, Any]:
    # Not pyplot: it would look for a display and keep the figure in a global.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns + 1.2, 3.0 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axis, regime in zip(axes, panels, strict=False):
        axis.set_title(regime)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for spare in axes[len(panels) :]:
        spare.set_visible(False)
    for first in axes[::columns]:
        first.set_ylabel(label)
    return figure, axes


def _line(axis: Any, band: tuple[Any, Any, Any], label: str, color: str, style: str) -> None:
    places, mean, spread = band
    axis.plot(places, mean, style, label=label, color=color, linewidth=1.8)
    axis.fill_between(places, mean - spread, mean + spread, color=color, alpha=0.12, linewidth=0)


def _finish(figure: Any, axes: Any, path: Path) -> Path:
    entries: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(entries.values(), entries.keys(), frameon=False, loc="outside right center")
    figure.savefig(path, dpi=110)
    return path


def _draw(panels: Mapping[str, Sequence[Result]], path: Path, x: tuple[str, float], y: tuple[str, str]) -> Path:
    """One panel a regime, one line a method: x is a column and its end, y a column and its label."""
    figure, axes = _figure(panels, y[1])
    for axis, results in zip(axes, panels.values(), strict=False):
        for method, (color, style) in STYLES.items():
            band = _band([each for each in results if each.cell.method == method], x[0], y[0], x[1])
            if band is not None:
                _line(axis, band, method, color, style)
        axis.set_xlabel(x[0])
        if x[1] > 1000:
            axis.xaxis.set_major_formatter(lambda place, _: f"{place / 1000:.0f}k")
        axis.set_ylim(0, 1)
    return _finish(figure, axes, path)


def _draw_alignments(panels: Mapping[str, Sequence[Result]], path: Path, end: float) -> Path:
    figure, axes = _figure(panels, "alignment in the cosine runs")
    for axis, results in zip(axes, panels.values(), strict=False):
        own = [each for each in results if each.cell.method == "cosine"]
        for kind, color in (("good", "#1a7f37"), ("bad", "#d1242f")):
            band = _band(own, "updates", f"alignment_{kind}", end)
            if band is not None:
                _line(axis, band, f"{kind} problems", color, "-")
        axis.axhline(0, color="#8a8f98", linewidth=0.8)
        axis.set_xlabel("updates")
    return _finish(figure, axes, path)
