"""The pages of the reproduction show what results.jsonl in their folders holds."""

import re
from pathlib import Path
from statistics import fmean

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


def shown(page, title):
    """The rows of the tables under a title, as text."""
    part = (DOCS / page).read_text(encoding="utf-8").partition(f"{title}\n")[2].partition("\n#")[0]
    return [[cell.strip("|`* ") for cell in line.strip("|").split(" | ")] for line in re.findall(r"^\| .*", part, re.M)]


def assert_mean_of_three(told, found):
    """Of three seeds, to the digits that are shown."""
    assert len(found) == 3
    assert float(told) == pytest.approx(fmean(found.values()), abs=6e-4)


def test_the_table_of_a_clean_pool_is_that_of_its_results():
    readings = Readings(read_results(DOCS / "reproduction-clean"), {})
    rows = [row for row in shown("reproduction.md", "### A clean pool") if row[1].startswith(".")]
    assert len(rows) == 7
    for method, updates, rollouts in rows:
        for told, budget in ((updates, "updates"), (rollouts, "rollouts")):
            assert_mean_of_three(told, readings.of("clean", method, budget))


def test_the_tables_of_others_baselines_are_those_of_their_results():
    readings = Readings(read_results(DOCS / "reproduction-baselines"), {})
    rows = shown("reproduction.md", "### Baselines of others, and the head alone")
    starts = [number for number, row in enumerate(rows) if row[1] == "inverted"]
    compared = 0
    for budget, part in zip(("updates", "rollouts"), (rows[: starts[1]], rows[starts[1] :]), strict=True):
        regimes = part[0][1:]
        for method, *told in part[1:]:
            for regime, figure in zip(regimes, told, strict=True):
                found = readings.of(regime, method, budget)
                if found:
                    assert_mean_of_three(figure, found)
                    compared += 1
    assert compared == 2 * 5 * 4


@pytest.mark.parametrize(
    ("regime", "section", "count"),
    [
        ("inverted", "## Inverted, from a warm start", 18),
        ("imbalance", "### Imbalance, from the same start", 12),
    ],
)
def test_the_tables_of_smollm2_are_those_of_its_results(regime, section, count):
    curves = {
        (str(result.cell.seed), result.cell.method): result.curve["pass_rate"]
        for result in read_results(DOCS / "smollm2")
        if result.cell.regime == regime
    }
    rows = [row for row in shown("smollm2.md", section) if row[0].isdigit()]
    assert len(rows) == len(curves) == count
    for seed, method, *rates in rows:
        assert [float(rate) for rate in rates[:4]] == pytest.approx(curves[seed, method], abs=6e-4)


@BOTH
def test_the_results_are_of_the_settings_that_the_command_runs(name):
    results = read_results(DOCS / name)
    assert {result.digest == Recipe().digest(result.cell) for result in results} == {True}
    assert len({(result.cell, result.long) for result in results}) == len(results)
