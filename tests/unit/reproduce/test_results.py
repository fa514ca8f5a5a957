"""The file of results: appended line by line, whole after any end, one writer at a time; and the cells in it."""

import pytest

from gradalign_trainer.reproduce.grid.cells import Cell, Recipe, cells_of, run_id
from gradalign_trainer.reproduce.grid.methods import BASELINES, METHODS, ON_TRUSTED_ONLY, PAPER_BASELINES
from gradalign_trainer.reproduce.grid.results import Result, ResultsError, ResultsLog, read_results
from gradalign_trainer.worlds.builtin import ArithmeticWorld

CURVE = {"round": [0, 30], "updates": [0, 60], "pass_rate": [0.3, 0.7], "trained_good": [None, 0.5]}
ONE, TWO = (Result(Cell(seed, "inverted", "cosine"), "d", True, CURVE) for seed in (0, 1))


def test_results_come_back_in_the_order_they_were_added(tmp_path):
    assert read_results(tmp_path) == []
    with ResultsLog(tmp_path / "new" / "folder") as log:
        log.add(TWO)
        log.add(ONE)
        assert read_results(tmp_path / "new" / "folder") == [TWO, ONE] == log.results


def test_a_torn_line_is_no_result_and_is_written_over(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{ONE.line()}\n{TWO.line()[:40]}")
    assert read_results(tmp_path) == [ONE]
    with ResultsLog(tmp_path) as log:
        log.add(TWO)
    assert path.read_text() == f"{ONE.line()}\n{TWO.line()}\n"


def test_a_file_that_is_one_torn_line_begins_anew(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"seed": 0')
    with ResultsLog(tmp_path) as log:
        assert log.results == []
        log.add(ONE)
    assert read_results(tmp_path) == [ONE]


@pytest.mark.parametrize("line", ["{}", "not JSON", "[1]", '{"seed": "x", "regime": "a", "method": "b"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "results.jsonl").write_text(f"{ONE.line()}\n{line}\n{TWO.line()}\n")
    with pytest.raises(ResultsError, match=r"results\.jsonl:2 is no result .* Remove the line"):
        read_results(tmp_path)


def test_two_grids_do_not_write_to_one_file(tmp_path):
    with (
        ResultsLog(tmp_path),
        pytest.raises(ResultsError, match=r"another gradalign reproduce is writing to .*--output"),
    ):
        ResultsLog(tmp_path)
    with ResultsLog(tmp_path) as log:
        log.add(ONE)


def test_seeds_come_outermost():
    cells = cells_of(["inverted", "imbalance"], ["random", "cosine"], 2)
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4
    assert [cell.regime for cell in cells[:4]] == ["inverted", "inverted", "imbalance", "imbalance"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_run_that_is_read_at_equal_updates(method, tmp_path):
    cell = Cell(4, "misconception", method)
    short, long = (Recipe(long=each).config(cell, tmp_path, tmp_path / "o", "http://h:1") for each in (False, True))
    assert short.rounds * short.updates_per_round == 60
    assert long.rounds > short.rounds
    assert short.rounds % short.evaluate_every == 0
    assert short.seed == 4
    assert short.run_id == run_id(cell)


def test_a_digest_is_of_what_decides_the_curve():
    cells = [Cell(seed, regime, method) for seed in (0, 3) for regime in ("inverted", "coin") for method in METHODS]
    apart = [cell for cell in cells if cell.method not in ON_TRUSTED_ONLY or cell.regime == "coin"]
    assert (
        len({Recipe().digest(cell) for cell in cells}) == len({Recipe().digest(cell) for cell in apart}) == len(apart)
    )
    one = Cell(0, "coin", "dot")
    assert Recipe().digest(one) == Recipe(long=False).digest(one)
    others = [Recipe(world=ArithmeticWorld(base_steps=10)), Recipe(changes={"dim": 512})]
    assert Recipe().digest(one) not in [recipe.digest(one) for recipe in others]


def test_the_lists_of_baselines_name_methods():
    assert set(PAPER_BASELINES) < set(BASELINES) < set(METHODS)
    assert not {"oracle", "cosine"} & set(BASELINES)
