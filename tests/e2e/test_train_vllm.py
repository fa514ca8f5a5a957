"""Whole runs that vLLM generates for: they learn, go on where they were cut off, and end in a whole report."""

import json
import shutil

import pytest
from releases import needs
from toyworld import toy_world
from trainkit import assert_same_weights, problems_of, weights

from gradalign.cli import main
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.reproduce.grid.results import read_results
from gradalign_trainer.runs.session import run_training
from gradalign_trainer.worlds.arithmetic import CHARACTERS
from gradalign_trainer.worlds.supervised import save_once
from gradalign_trainer.worlds.tinymodel import character_tokenizer, tiny_model

needs("vllm")

pytestmark = pytest.mark.slow

FEW = {"dim": 512, "pool_size": 24, "group_size": 8, "validation_problems": 8, "validation_rollouts": 24}
FAST = {"updates_per_round": 2, "batch_problems": 8, "learning_rate": 2e-3, "warmup_steps": 1}
JUDGED = {"reward": "trainkit:begins_with_nine", "evaluation": "sampled", "scorer_timeout": 120.0}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The folder of a model that knows nothing, with heads of a size that vLLM has a kernel for on CPUs."""
    tokenizer = character_tokenizer(f"{CHARACTERS}\n")
    model = tiny_model(tokenizer, seed=0, hidden=128, heads=4, mlp=192, positions=64)
    return save_once(tmp_path_factory.mktemp("models") / "fresh", model, tokenizer)


@pytest.fixture
def play(fresh, tmp_path, scorer, run_id):
    """Trains as `gradalign train` does: `play("name", resume=..., **settings)`."""

    def run(name, *, resume=False, **settings):
        where = {"run_id": f"{run_id}-{name}", "output": tmp_path / name, "model": str(fresh), "device": "cpu"}
        made = {"generation": "vllm", "scorer_url": scorer.url, **FEW, **FAST, **JUDGED, **where, **settings}
        return run_training(TrainConfig(**made), resume=resume)

    return run


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("alignment", ["capture", "forward"])
def test_a_run_learns_by_what_the_scorer_chooses(play, tmp_path, scorer, run_id, alignment):
    result = play("run", rounds=6, alignment=alignment)
    assert result.fallbacks == 0
    rows = metrics(tmp_path / "run")
    assert [row["round"] for row in rows] == [*range(7)]
    assert rows[-1]["scored"] == 24
    assert rows[-1]["update_rollouts"] == 6 * 2 * 8 * 8
    assert rows[-1]["pass_rate"] > rows[0]["pass_rate"] + 0.3
    assert sum(row.times_scored for row in problems_of(scorer.url, f"{run_id}-run").values()) == 6 * 24


def test_a_run_that_was_cut_off_resumes_bit_for_bit(play, tmp_path):
    settings = {"checkpoint_every": 2, "rounds": 4}
    unbroken = play("unbroken", run_id="a-run", **settings)
    cut = play("cut", run_id="another", **{**settings, "rounds": 3})
    shutil.rmtree(cut.checkpoint)  # the third round was trained on, and its checkpoint never written
    resumed = play("cut", run_id="another", resume=True, **settings)
    assert_same_weights(weights(unbroken), weights(resumed))
    rates = [[row["pass_rate"] for row in metrics(tmp_path / name)] for name in ("unbroken", "cut")]
    assert rates[0] == rates[1]
    assert len(rates[0]) == 5


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_are_trained_on_what_the_merged_weights_say(play, tmp_path):
    settings = {"lora_rank": 4, "learning_rate": 1e-2, "rounds": 4, "checkpoint_every": 2}
    result = play("run", **settings)
    rows = metrics(tmp_path / "run")
    assert rows[-1]["pass_rate"] > rows[0]["pass_rate"] + 0.3
    shutil.rmtree(result.checkpoint)
    play("run", resume=True, **settings)  # from a checkpoint of adapters alone
    assert [row["pass_rate"] for row in metrics(tmp_path / "run")] == [row["pass_rate"] for row in rows]


def test_a_grid_ends_in_a_report(fresh, tmp_path, scorer):
    toy_world(tmp_path / "toy", model=str(fresh))
    methods = ["random", "forward-weights"]
    asked = [
        "--world",
        str(tmp_path / "toy"),
        "--regime",
        "coin",
        "--methods",
        *methods,
        "--seeds",
        "1",
        "--workers",
        "1",
    ]
    where = ["--output", str(tmp_path / "out"), "--scorer-url", scorer.url]
    assert main(["reproduce", *asked, *where, "--generation", "vllm"]) == 0
    results = read_results(tmp_path / "out")
    assert {result.cell.method for result in results} == {*methods}
    assert all(result.curve["updates"] == [0, 1, 2] for result in results)
    assert "| method | 2 updates |" in (tmp_path / "out" / "report.md").read_text()
    assert main(["reproduce", *asked, *where]) == 2  # by transformers they would be other results
