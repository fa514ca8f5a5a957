"""TRL runs that go on from a checkpoint: with its curriculum, and with its validation gradient where that can be read."""

import json
import logging
import re

import pytest
import torch
from releases import needs
from trlkit import make_trainer
from trlranks import two_processes

from gradalign import Client, GradAlignError

pytestmark = [
    # What TRL, transformers and accelerate warn of is theirs.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]
BOTH = pytest.mark.parametrize("alignment", ["forward", "capture"])
SAVED = {"save_strategy": "steps", "save_steps": 2}
GRADIENT = "gradalign_direction.pt"


@pytest.fixture
def play(base, scorer, tmp_path, run_id):
    """Makes a trainer that saves checkpoints: `play(**settings of make_trainer)`."""

    def make(name="run", *, gradalign=None, **settings):
        curriculum = {"refresh_every": 3, "alignment": "forward", **(gradalign or {})}
        return make_trainer(base, tmp_path / name, scorer.url, run_id, gradalign=curriculum, **SAVED, **settings)

    return make


@pytest.fixture
def rounds(scorer, run_id):
    """What the scorer was asked for, in order."""

    def kinds(run_id=run_id):
        with Client(scorer.url, run_id=run_id) as client:
            return [record.kind for record in client.rounds()]

    return kinds


def problems_of(url, run_id):
    with Client(url, run_id=run_id) as client:
        return {row.problem_id: row for row in client.problems(limit=1000).problems}


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@BOTH
def test_a_resumed_run_goes_on_with_its_curriculum(play, scorer, run_id, tmp_path, alignment):
    settings = {"gradalign": {"alignment": alignment}}
    unbroken = play(**settings)
    unbroken.train()
    assert (tmp_path / "run/checkpoint-2" / GRADIENT).exists() == (alignment == "forward")
    known, end = problems_of(scorer.url, run_id), weights(unbroken)
    assert json.loads((tmp_path / "run/checkpoint-2/gradalign.json").read_text())["snapshot"] == "checkpoint-2"
    resumed = play(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert [entry["step"] for entry in resumed.state.log_history if "reward" in entry] == [1, 2, 3, 4]
    assert problems_of(scorer.url, run_id) == known
    assert all(torch.equal(value, end[name]) for name, value in weights(resumed).items())

    (tmp_path / "run/checkpoint-2/gradalign.json").unlink()
    with pytest.raises(GradAlignError, match="is at step 3, and the checkpoint is at step 2"):
        play(**settings).train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    with pytest.raises(GradAlignError, match="is at step 3, and this training begins at step 0"):
        play(**settings).train()


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "alignment"),
    [("ddp", "forward"), ("fsdp2", "forward"), ("fsdp2", "capture"), ("zero2", "forward"), ("zero3", "forward")],
)
def test_two_processes_go_on_with_the_gradient_of_the_checkpoint(
    base, scorer, rounds, run_id, tmp_path, engine, alignment
):
    if engine.startswith("zero"):
        needs("deepspeed")
    settings = {**SAVED, "gradalign": {"alignment": alignment, "refresh_every": 3}}
    unbroken = two_processes(base, tmp_path, scorer.url, run_id, "plain", engine, **settings)
    files = sorted(file.name for file in (tmp_path / "checkpoint-2").glob("gradalign_direction*"))
    shards = [f"gradalign_direction-0000{rank}-of-00002.pt" for rank in range(2)]
    kept = shards if engine in ("fsdp2", "zero3") else [GRADIENT]
    assert files == ([] if alignment == "capture" else kept)
    resume = str(tmp_path / "checkpoint-2")
    resumed = two_processes(base, tmp_path, scorer.url, run_id, "plain", engine, **settings, resume=resume)
    for one, other in zip(resumed, unbroken, strict=True):
        assert (one["weights"], one["moments"]) == (other["weights"], other["moments"])
    assert rounds() == ["refresh", "score", "score", "restore", "score", "refresh", "score"]


def damaged(path):
    path.write_bytes(path.read_bytes()[:-200])


def of_another_version(path):
    torch.save({**torch.load(path), "version": 7}, path)


def of_another_model(path):
    held = torch.load(path)
    held["parts"].popitem()
    torch.save(held, path)


def of_shards(path):
    path.rename(path.with_name("gradalign_direction-00000-of-00004.pt"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damaged, r"gradalign_direction.pt cannot be read"),
        (of_another_version, r"is of version 7 of the validation gradient, the scorer holds 1"),
        (of_another_model, r"the state holds nothing of "),
        (of_shards, r"has no gradalign_direction.pt, but gradalign_direction-00000-of-00004.pt"),
    ],
)
def test_a_gradient_that_does_not_fit_is_taken_anew(play, rounds, tmp_path, caplog, change, words):
    caplog.set_level(logging.WARNING, "gradalign_trainer")
    play().train()
    change(tmp_path / "run/checkpoint-2" / GRADIENT)
    play().train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert rounds() == ["refresh", "score", "score", "restore", "refresh", "score", "score"]
    [said] = [record.getMessage() for record in caplog.records if "taken anew" in record.getMessage()]
    assert re.search(words, said)


def test_a_full_disk_costs_a_gradient_and_no_run(play, rounds, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.WARNING, "gradalign_trainer")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradalign_trainer.adapters.trl.measuring.kept.os.fsync", full)
    play().train()
    assert "The validation gradient is not kept with" in caplog.text
    assert "No space left on device" in caplog.text
    assert not list((tmp_path / "run/checkpoint-2").glob("gradalign_direction*"))
    assert rounds() == ["refresh", "score", "score"] * 2
    play().train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert rounds()[3:] == ["restore", "refresh", "score", "score"]
    assert caplog.text.count("taken anew") == 2 + 1


def test_a_gradient_may_be_left_out(play, rounds, tmp_path):
    settings = {"gradalign": {"checkpoint_gradient": False}}
    unbroken = play(**settings)
    unbroken.train()
    assert not list((tmp_path / "run/checkpoint-2").glob("gradalign_direction*"))
    resumed = play(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert rounds() == ["refresh", "score", "score", "restore", "refresh", "score", "score"]
    end = weights(unbroken)
    assert all(torch.equal(value, end[name]) for name, value in weights(resumed).items())
