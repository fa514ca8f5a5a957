"""The pages of the reproduction show what results.jsonl in their folders holds."""

from pathlib import Path

import pytest

from gradalign_trainer.reproduce.grid.cells import Recipe
from gradalign_trainer.reproduce.grid.results import read_results
from gradalign_trainer.reproduce.grid.timing import read_timing
from gradalign_trainer.reproduce.report.readings import Readings
from gradalign_trainer.reproduce.report.tables import results_page

DOCS = Path(__file__).parents[3] / "docs"
BOTH = pytest.mark.parametrize("name", ["reproduction", "reproduction-forward"])


@BOTH
def test_the_tables_are_those_of_the_results(name):
    readings = Readings(read_results(DOCS / name), read_timing(DOCS / name))
    page = results_page(readings)
    assert page in (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert page in (DOCS / name / "report.md").read_text(encoding="utf-8")


@BOTH
def test_the_results_are_of_the_settings_that_the_command_runs(name):
    results = read_results(DOCS / name)
    assert {result.digest == Recipe().digest(result.cell) for result in results} == {True}
    assert len({(result.cell, result.long) for result in results}) == len(results)
