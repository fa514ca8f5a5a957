"""The grid for real: a slice of two rounds that is killed and goes on, and its report."""

import logging
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest
import reproduce_slice
from rawhttp import wait_until
from reproduce_slice import METHODS, slice_of
from rich.console import Console

from gradalign import Client, GradAlignError
from gradalign.errors import NotFound
from gradalign_trainer.reproduce.grid import progress
from gradalign_trainer.reproduce.grid.cells import Cell, run_id
from gradalign_trainer.reproduce.grid.grid import run_grid
from gradalign_trainer.reproduce.grid.results import ResultsError, read_results
from gradalign_trainer.reproduce.report.report import write_report


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Where the base models are kept."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def start(tmp_path, models):
    """Starts the slice in processes of its own, one group of them, and waits for a result; the first of them."""

    def begin(url):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
        command = [sys.executable, reproduce_slice.__file__, tmp_path / "grid", url, models]
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        wait_until(lambda: read_results(tmp_path / "grid") or process.poll() is not None, 500)
        assert process.poll() is None, "the grid ended by itself"
        return process

    return begin


@pytest.mark.slow
def test_a_grid_that_was_killed_runs_what_is_left_and_reports(start, scorer, models, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "grid"
    process = start(scorer.url)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = (folder / "results.jsonl").read_text()
    assert 1 <= len(read_results(folder)) < len(METHODS)

    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    caplog.set_level(logging.INFO)
    run_grid(slice_of(folder, scorer.url, models), Console(stderr=True))
    assert re.search(r"now misconception, [a-z+]+, seed 0: [0-2] of 2 rounds", caplog.text)
    assert (folder / "results.jsonl").read_text().startswith(kept.rpartition("\n")[0])
    results = read_results(folder)
    assert [result.cell for result in results] == [Cell(0, "misconception", method) for method in METHODS]
    spent = {result.cell.method: result.curve["rollouts"][-1] for result in results}
    assert spent["random"] == spent["oracle"] == 2 * 2 * 8 * 8
    assert spent["cosine"] == 2 * (32 * 8 + 8 * 4 + 2 * 8 * 8)
    assert spent["dapo"] > spent["random"]
    assert {len(result.curve["pass_rate"]) for result in results} == {3}
    assert len({result.curve["pass_rate"][0] for result in results}) == 1  # one base model
    good = {result.cell.method: result.curve["trained_good"] for result in results}
    assert good["oracle"] == [None, 1.0, 1.0]
    assert not list((folder / "running").glob("*"))
    with Client(scorer.url, run_id=run_id(Cell(0, "misconception", "cosine"))) as client, pytest.raises(NotFound):
        client.run()  # what is over is forgotten

    before = (folder / "results.jsonl").read_bytes()
    run_grid(slice_of(folder, None, models), Console(stderr=True))  # all is done: no process and no scorer is started
    assert (folder / "results.jsonl").read_bytes() == before
    with pytest.raises(ResultsError, match=r"holds a result of misconception, random, seed 0 with other settings"):
        run_grid(slice_of(folder, None, models, dim=256), Console(stderr=True))
    page, *pictures = write_report(folder)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert [path.stem for path in pictures] == ["curves-updates", "composition", "alignments", "curves-rollouts"]
    assert "### misconception" in page.read_text()


@pytest.mark.slow
def test_a_grid_that_is_killed_alone_leaves_no_process(start):
    """Its scorer, the store of that and its workers are in no group with it."""
    process = start("")
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 4  # scorer, store, worker, and what multiprocessing keeps beside it
    process.kill()
    process.wait()
    wait_until(lambda: not any(runs(each) for each in family))


def runs(process):
    """Whether a process runs; one that nobody has waited for yet does not."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_run_that_sees_nothing_of_its_regime_is_played_once_for_all(models, tmp_path):
    settings = replace(
        slice_of(tmp_path, None, models), regimes=("misconception", "coin"), methods=("validation-only",)
    )
    run_grid(replace(settings, scorer_url="http://127.0.0.1:9"), Console(stderr=True))
    one, two = read_results(tmp_path)
    assert [one.cell.regime, two.cell.regime] == ["misconception", "coin"]
    assert one.curve == two.curve  # its seconds too
    assert one.digest == two.digest


def test_a_cell_without_its_scorer_is_no_result(models, tmp_path):
    settings = slice_of(tmp_path, "http://127.0.0.1:9", models, scorer_retries=0)
    with pytest.raises(GradAlignError, match=r"(?s)misconception, cosine, seed 0: .*run the same command again"):
        run_grid(settings, Console(stderr=True))
    assert [result.cell.method for result in read_results(tmp_path)] == ["random"]
