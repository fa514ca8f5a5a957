"""Plots of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

__all__ = ["Curve", "plot_curves"]

Curve: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Optimizer updates, and held-out pass rates at them."""

COLORS = {"random": "#8a8f98", "cosine": "#1f6feb"}
OTHERS = ("#d1242f", "#1a7f37", "#9a6700", "#8250df")


def plot_curves(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Draw held-out pass rates over updates, one panel a regime, one line a strategy, as PNG.

    Args:
        panels: title -> label -> curve.
        path: of the picture; its folder must exist.
    """
    # Not pyplot: it would look for a display and keep the figure in a global.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for (label, (updates, rates)), spare in zip(curves.items(), OTHERS * len(curves), strict=False):
            color = COLORS.get(label, spare)
            axis.plot(updates, rates, label=label, color=color, linewidth=2)
            axis.annotate(
                f"{rates[-1]:.2f}",
                (updates[-1], rates[-1]),
                (4, 0),
                textcoords="offset points",
                va="center",
                color=color,
            )
        axis.set(title=title, xlabel="updates")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="best")
    axes[0].set_ylabel("held-out pass@1")
    axes[0].set_ylim(bottom=0)
    figure.savefig(path, dpi=150)
