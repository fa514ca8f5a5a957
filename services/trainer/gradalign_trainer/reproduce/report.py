"""Writes what a grid found into its folder: `report.md` and the pictures."""

from __future__ import annotations

from pathlib import Path

from gradalign.errors import GradAlignError
from gradalign_trainer.reproduce.pictures import draw_pictures
from gradalign_trainer.reproduce.readings import Readings
from gradalign_trainer.reproduce.results import read_results
from gradalign_trainer.reproduce.tables import results_page
from gradalign_trainer.reproduce.timing import read_timing

__all__ = ["write_report"]

LEGEND = """\
Held-out pass@1 (the exact probability of the right answer, 512 problems): mean ± standard deviation (seeds). Behind each
budget the difference to its best baseline, which is in italics: paired by seed, with a 95% t interval, ▲ or ▼ where that
does not hold zero.
"""


def write_report(folder: Path) -> list[Path]:
    """Tables and pictures of the results in a folder; their paths, the tables first.

    Raises:
        GradAlignError: there are no results, or they are damaged.
    """
    results = read_results(folder)
    if not results:
        raise GradAlignError(
            f"{folder} holds no results; expected a folder that gradalign reproduce has run in. Leave out --report-only, "
            "or name the folder with --output."
        )
    readings = Readings(results, read_timing(folder))
    page = folder / "report.md"
    pictures = draw_pictures(readings, folder)
    shown = "".join(f"\n![{path.stem}]({path.name})\n" for path in pictures)
    page.write_text(f"{LEGEND}\n{results_page(readings)}{shown}", encoding="utf-8")
    return [page, *pictures]
