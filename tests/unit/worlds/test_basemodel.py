"""The base model of the arithmetic world: trained once for its settings, the same every time."""

import os

import pytest
import torch

from gradalign_trainer.grpo.evaluation import exact_pass_rates
from gradalign_trainer.grpo.models import load_policy
from gradalign_trainer.worlds.basemodel import BaseTraining, base_model, train_base
from gradalign_trainer.worlds.regimes import make_world

TINY = BaseTraining(steps=3, batch=8)


def weights(folder):
    return load_policy(folder, device=torch.device("cpu"))[0].state_dict()


def test_a_model_is_trained_once_for_its_settings(tmp_path):
    told = []
    folder = base_model(tmp_path / "cache", TINY, told.append)
    assert told == [1, 2, 3]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert base_model(tmp_path / "cache", TINY, told.append) == folder
    assert told == [1, 2, 3]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert os.listdir(tmp_path / "cache") == [folder.name]


@pytest.mark.parametrize("change", [{"steps": 4}, {"batch": 9}, {"learning_rate": 1e-3}, {"seed": 1}])
def test_other_settings_are_another_model(tmp_path, change):
    one, other = base_model(tmp_path, TINY), base_model(tmp_path, BaseTraining(**{"steps": 3, "batch": 8} | change))
    assert one != other
    assert not torch.equal(weights(one)["lm_head.weight"], weights(other)["lm_head.weight"])


def test_the_same_settings_give_the_same_weights(tmp_path):
    one, other = weights(base_model(tmp_path / "a", TINY)), weights(base_model(tmp_path / "b", TINY))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_number_of_threads_changes_no_weight(tmp_path):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(weights(base_model(tmp_path / str(threads), BaseTraining(steps=2))))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    one, other = found
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_teaches_the_form_of_the_answers():
    problems = make_world("clean", seed=0, pool=1, heldout=64).heldout
    fresh, taught = (
        exact_pass_rates(*train_base(BaseTraining(steps=steps, batch=32, learning_rate=1e-2)), problems).mean()
        for steps in (0, 25)
    )
    assert taught > 5 * fresh
