"""`gradalign reproduce` in the world of a folder, with a tiny Llama that is made on the spot."""

import pytest
from toyworld import toy_world

from gradalign.cli import main
from gradalign_trainer.reproduce.grid.results import read_results

REGIMES = ("coin", "imbalance")


@pytest.fixture
def reproduce(tmp_path, scorer):
    toy_world(tmp_path / "toy")

    def run(*more):
        where = ["--world", str(tmp_path / "toy"), "--output", str(tmp_path / "out"), "--scorer-url", scorer.url]
        return main(["reproduce", *where, "--workers", "1", *more])

    return run


@pytest.mark.slow
def test_a_grid_of_ones_own_world_ends_in_a_report(reproduce, tmp_path, capsys):
    methods = ["random", "cosine", "forward-weights", "validation-only", "oracle"]
    assert reproduce("--regime", *REGIMES, "--methods", *methods, "--seeds", "1") == 0
    results = read_results(tmp_path / "out")
    assert {(result.cell.regime, result.cell.method) for result in results} == {
        (r, m) for r in REGIMES for m in methods
    }
    assert all(result.curve["updates"] == [0, 1, 2] for result in results)
    assert len({result.curve["pass_rate"][0] for result in results}) == 1  # one base model
    assert {result.curve["trained_good"][-1] for result in results if result.cell.method == "oracle"} == {1.0}
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| method | 2 updates |" in page
    assert "### coin: half of the pool is rewarded by the flip of a coin" in page
    assert "all problems of test.jsonl" in page
    assert reproduce("--regime", *REGIMES, "--methods", *methods, "--seeds", "1", "--report-only") == 0


@pytest.mark.slow
def test_a_longer_grid_ends_at_the_updates_asked_for(reproduce, tmp_path):
    arguments = ("--regime", "coin", "--methods", "random", "forward-weights", "--seeds", "1", "--updates", "4")
    assert reproduce(*arguments) == 0
    assert [result.curve["updates"] for result in read_results(tmp_path / "out")] == [[0, 2, 4]] * 2
    page = tmp_path / "out" / "report.md"
    assert "| method | 4 updates |" in page.read_text()
    page.unlink()
    assert reproduce(*arguments, "--report-only") == 0
    assert "| method | 4 updates |" in page.read_text()


def test_updates_that_no_round_ends_at_are_refused(tmp_path, capsys):
    assert main(["reproduce", "--updates", "31", "--output", str(tmp_path / "out")]) == 2
    assert "--updates 31: a round in the world arithmetic has 2 updates; expected a multiple" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_of_another_world_are_refused(reproduce, capsys):
    assert reproduce("--regime", "misconception", "--seeds", "1") == 2
    assert "'misconception' is unknown" in capsys.readouterr().err
    assert reproduce("--model", "somewhere") == 2
    assert "which has its own; expected --world smollm2" in capsys.readouterr().err
