"""Writes what a grid found into its folder: `report.md` and the pictures."""

from __future__ import annotations

from pathlib import Path

from gradalign.errors import GradAlignError
from gradalign_trainer.reproduce.grid.results import read_results
from gradalign_trainer.reproduce.grid.timing import read_timing
from gradalign_trainer.reproduce.report.pictures import draw_pictures
from gradalign_trainer.reproduce.report.readings import Readings
from gradalign_trainer.reproduce.report.tables import results_page
from gradalign_trainer.world import World

__all__ = ["write_report"]

LEGEND = """\
# All tables of `gradalign reproduce`

Each method that was run, in each regime.

Held-out pass@1 ({judged_by}): mean ± standard deviation (seeds). Behind each
budget stands the difference to its best baseline, which is in italics. It is paired by seed, with a 95% t interval; ▲ or ▼
where that does not hold zero.
"""


BEGIN, END = "<!-- tables of gradalign reproduce -->\n", "<!-- end of the tables -->"


def write_report(folder: Path, page: Path | None = None, world: World | None = None) -> list[Path]:
    """Tables and pictures of the results in a folder; their paths, the tables first.

    Args:
        folder: of a grid.
        page: a Markdown page that gets the tables too, between two lines: `<!-- tables of gradalign reproduce -->` and
            `<!-- end of the tables -->`.
        world: that was run; None for arithmetic.

    Raises:
        GradAlignError: there are no results, they are damaged, or the page lacks one of the lines.
    """
    results = read_results(folder)
    if not results:
        raise GradAlignError(
            f"{folder} holds no results; expected a folder that gradalign reproduce has run in. Leave out --report-only, "
            "or name the folder with --output."
        )
    readings = Readings(results, read_timing(folder), world)
    tables, report = results_page(readings), folder / "report.md"
    if page is not None:
        _put_between(page, tables)
    pictures = draw_pictures(readings, folder)
    shown = "".join(f"\n![{path.stem}]({path.name})\n" for path in pictures)
    report.write_text(f"{LEGEND.format(judged_by=readings.world.judged_by)}\n{tables}{shown}", encoding="utf-8")
    return [report, *pictures]


def _put_between(page: Path, tables: str) -> None:
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise GradAlignError(
            f"{page} has no place for the tables; expected the lines {BEGIN.strip()!r} and {END!r} in it, in this order."
        )
    page.write_text(f"{before}{begin}\n{tables}\n{end}{after}", encoding="utf-8")
