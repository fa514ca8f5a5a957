"""docs/reproduction.md shows what docs/reproduction/results.jsonl holds."""

from pathlib import Path

from gradalign_trainer.reproduce.grid.cells import Recipe
from gradalign_trainer.reproduce.grid.results import read_results
from gradalign_trainer.reproduce.grid.timing import read_timing
from gradalign_trainer.reproduce.report.readings import Readings
from gradalign_trainer.reproduce.report.tables import results_page

DOCS = Path(__file__).parents[3] / "docs"
FOLDER = DOCS / "reproduction"


def test_the_tables_are_those_of_the_results():
    readings = Readings(read_results(FOLDER), read_timing(FOLDER))
    page = results_page(readings)
    assert page in (DOCS / "reproduction.md").read_text(encoding="utf-8")
    assert page in (FOLDER / "report.md").read_text(encoding="utf-8")


def test_the_results_are_of_the_settings_that_the_command_runs():
    results = read_results(FOLDER)
    assert {result.digest == Recipe().digest(result.cell) for result in results} == {True}
    assert len({(result.cell, result.long) for result in results}) == len(results)
