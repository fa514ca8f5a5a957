"""Checkpoints: what is saved comes back, nothing half-written shows, and damage is named."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from gradalign_trainer.grpo.models import load_policy
from gradalign_trainer.runs.checkpoint import (
    CheckpointError,
    RunState,
    latest_checkpoint,
    load_optimizer,
    load_state,
    save_checkpoint,
)
from gradalign_trainer.worlds.tinymodel import byte_tokenizer, tiny_model

CPU = torch.device("cpu")
STATE = RunState(run_id="r", round_number=3, policy_version=12, fallbacks=1, snapshot="round-3", projection="ab12")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def policy(tokenizer):
    """A model and its optimizer, a few updates in."""
    model = tiny_model(tokenizer, seed=0, hidden=16, mlp=32, layers=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for seed in range(3):
        step(model, optimizer, seed)
    return model, optimizer


def step(model, optimizer, seed):
    ids = torch.randint(2, 258, (2, 6), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def state_of(number):
    return RunState(run_id="r", round_number=number, policy_version=number, fallbacks=0, snapshot=None, projection="p")


@pytest.fixture
def save(policy, tokenizer, tmp_path):
    def save(number=3, *, training=None, keep=2):
        model, optimizer = policy
        training = {"optimizer": optimizer.state_dict()} if training is None else training
        return save_checkpoint(tmp_path / "checkpoints", state_of(number), model, tokenizer, training, keep=keep)

    return save


def names(tmp_path):
    return sorted(os.listdir(tmp_path / "checkpoints"))


def test_what_is_saved_comes_back(policy, tokenizer, tmp_path):
    model, optimizer = policy
    place = save_checkpoint(tmp_path, STATE, model, tokenizer, {"optimizer": optimizer.state_dict()}, keep=1)
    assert place == tmp_path / "round-000003" == latest_checkpoint(tmp_path)
    assert load_state(place) == STATE
    again, its_tokenizer = load_policy(place, device=CPU)
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name


def test_training_goes_on_bit_for_bit(policy, save):
    model, optimizer = policy
    place = save()
    again, _ = load_policy(place, device=CPU)
    its_optimizer = torch.optim.Adam(again.parameters(), lr=1e-2)
    its_optimizer.load_state_dict(load_optimizer(place, CPU)["optimizer"])
    for seed in (7, 8):
        step(model, optimizer, seed)
        step(again, its_optimizer, seed)
    for mine, its in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_the_newest_are_kept_by_number(save, tmp_path):
    for number in (2, 9, 10):
        save(number)
    assert names(tmp_path) == ["round-000009", "round-000010"]
    save(11, keep=1)
    assert names(tmp_path) == ["round-000011"]


def test_strangers_in_the_folder_are_neither_latest_nor_dropped(save, tmp_path):
    save(1)
    for name in ("round-final", ".round-000009-x1", "notes"):
        (tmp_path / "checkpoints" / name).mkdir()
    assert latest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "round-000001"
    save(2, keep=1)
    assert names(tmp_path) == [".round-000009-x1", "notes", "round-000002", "round-final"]


def test_no_folder_and_an_empty_one_hold_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    assert latest_checkpoint(tmp_path) is None


def test_a_round_is_replaced_whole(policy, save, tmp_path):
    place = save(3)
    (place / "stray").touch()
    with torch.no_grad():
        policy[0].lm_head.weight.zero_()
    assert save(3) == place
    assert names(tmp_path) == ["round-000003"]
    assert not (place / "stray").exists()
    assert not load_policy(place, device=CPU)[0].lm_head.weight.any()


def test_a_save_that_fails_shows_nothing_and_harms_nothing(save, tmp_path):
    save(3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints/round-000003").iterdir()}
    for number in (3, 4):
        with pytest.raises((AttributeError, pickle.PicklingError)):
            save(number, training={"scheduler": lambda step: step}, keep=1)
    assert names(tmp_path) == ["round-000003"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints/round-000003").iterdir()} == before


def test_at_every_moment_of_a_save_what_shows_is_whole(policy, save, tmp_path):
    save(2)
    shown = []

    class Watching(dict):
        """State that looks at the folder while it is being written."""

        def items(self):
            shown.append(names(tmp_path))
            return super().items()

        def __reduce__(self):
            shown.append(names(tmp_path))
            return (dict, (dict(self),))

    save(3, training=Watching(optimizer=policy[1].state_dict()))
    assert shown
    for seen in shown:
        assert [name for name in seen if not name.startswith(".")] == ["round-000002"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "{}",
        json.dumps({"run_id": "r"}),
        json.dumps({"run_id": "r", "strange": 1}),
        "\udcff",
    ],
)
def test_a_damaged_state_is_named(save, content):
    place = save()
    (place / "state.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        CheckpointError, match=r"round-000003 is no checkpoint of this version .*Name another checkpoint"
    ):
        load_state(place)


def test_a_missing_state_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint of this version"):
        load_state(tmp_path)


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_damaged_optimizer_is_named(save, share):
    place = save()
    whole = (place / "optimizer.pt").read_bytes()
    (place / "optimizer.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"optimizer\.pt cannot be read .*Remove .*round-000003 to resume"):
        load_optimizer(place, CPU)


def test_a_missing_optimizer_is_named(save):
    place = save()
    (place / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.pt cannot be read"):
        load_optimizer(place, CPU)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_code_in_an_optimizer_is_not_run(save, tmp_path):
    place = save()
    torch.save({"optimizer": Trap(tmp_path / "sprung")}, place / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt cannot be read"):
        load_optimizer(place, CPU)
    assert not (tmp_path / "sprung").exists()
