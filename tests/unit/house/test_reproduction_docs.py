"""The pages of the reproduction show what results.jsonl in their folders holds."""

import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from gradalign_trainer.reproduce.grid.cells import Recipe
from gradalign_trainer.reproduce.grid.results import read_results
from gradalign_trainer.reproduce.grid.timing import read_timing
from gradalign_trainer.reproduce.report.readings import Readings, paired
from gradalign_trainer.reproduce.report.tables import difference_text, results_page
from gradalign_trainer.world import Scale, at_updates
from gradalign_trainer.worlds.builtin import ArithmeticWorld
from gradalign_trainer.worlds.tasks.smollm2 import SmolLM2World

DOCS = Path(__file__).parents[3] / "docs"
BOTH = pytest.mark.parametrize("name", ["reproduction", "reproduction-forward"])


@pytest.fixture(scope="module")
def smollm2():
    """What the grid of the real model says."""
    return Readings(read_results(DOCS / "smollm2"), {}, SmolLM2World())


@pytest.mark.parametrize(
    ("name", "world"),
    [("reproduction", ArithmeticWorld()), ("reproduction-forward", ArithmeticWorld()), ("smollm2", SmolLM2World())],
)
def test_the_tables_are_those_of_the_results(name, world):
    readings = Readings(read_results(DOCS / name), read_timing(DOCS / name), world)
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
    ("page", "title"),
    [("../README.md", "## Does it help?"), ("reproduction.md", "### A real model"), ("smollm2.md", "## What came out")],
)
def test_what_is_told_of_smollm2_is_what_its_results_say(page, title, smollm2):
    rows = shown(page, title)
    start = next(number for number, row in enumerate(rows) if row[1] == "random")
    methods = [name.strip("`") for name in rows[start][1:]]
    compared = 0
    for place, *told in rows[start + 1 :]:
        regime = place.partition("`")[0]
        for method, figure in zip(methods, told, strict=True):
            assert_mean_of_three(figure, smollm2.of(regime, method, "updates"))
            compared += 1
    assert compared == 5 * 5


def test_what_is_told_of_smollm2_at_equal_rollouts_is_what_both_grids_say(smollm2):
    longer = Readings(read_results(DOCS / "smollm2-longer"), {}, at_updates(SmolLM2World(), 90))
    alone = longer.of("clean", "validation-only", "updates")
    rollouts = {result.curve["rollouts"][-1] for result in longer.results}
    rows = [row for row in shown("smollm2.md", "### At equal rollouts") if row[1].startswith(".")]
    assert [row[0] for row in rows] == smollm2.regimes()
    for regime, *told in rows:
        for method, (mean, difference) in (("forward-weights", told[:2]), ("forward-weights+val", told[2:])):
            found = smollm2.of(regime, method, "updates")
            assert {each.curve["rollouts"][-1] for each in smollm2.results if each.cell.method == method} == rollouts
            assert_mean_of_three(mean, found)
            assert difference == difference_text(paired(found, alone))
    assert_mean_of_three(".478", alone)


def test_the_table_of_training_on_the_trusted_problems_too_is_that_of_its_results():
    results = [each for each in read_results(DOCS / "reproduction") if each.cell.seed]
    rows = shown("inbatch.md", "## Train on the trusted problems too")
    regimes = [regime.replace(" ", "-") for regime in rows[0][1:]]
    assert [row[0] for row in rows[1:]] == ["5,000", "10,000", "20,000", "40,000", "61,440"]
    for rollouts, *told in rows[1:]:
        scale = replace(Scale(), rollouts=int(rollouts.replace(",", "")))
        readings = Readings(results, {}, ArithmeticWorld(scale=scale))
        for regime, difference in zip(regimes, told, strict=True):
            found = paired(*(readings.of(regime, method, "rollouts") for method in ("in-batch+val", "in-batch")))
            assert found.seeds == 10
            assert difference == difference_text(found)


def test_what_is_told_of_smollm2_with_the_trusted_problems_in_the_update_is_what_its_results_say(smollm2):
    rows = [row for row in shown("smollm2.md", "### With the trusted problems in the update") if row[1].startswith(".")]
    assert [row[0] for row in rows] == ["inverted", "coin", "imbalance", "low-utility", "clean"]
    for regime, *told in rows:
        for budget, (plain, joined, difference) in (("rollouts", told[:3]), ("updates", told[3:])):
            without = smollm2.of(regime, "forward-weights", budget)
            found = smollm2.of(regime, "forward-weights+val", budget)
            assert_mean_of_three(plain, without)
            assert_mean_of_three(joined, found)
            assert difference == difference_text(paired(found, without))


@BOTH
def test_the_results_are_of_the_settings_that_the_command_runs(name):
    results = read_results(DOCS / name)
    assert {result.digest == Recipe().digest(result.cell) for result in results} == {True}
    assert len({(result.cell, result.long) for result in results}) == len(results)
