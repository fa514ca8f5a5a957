"""The recipe for SkyRL: its own trainer, prompts and checkpoints where it is installed, else its stand-in."""

import pytest
import recipekit
import skyrlkit
from recipekit import PROBLEMS, useful

from gradalign_trainer.settings import SettingsError


@pytest.fixture
def module(monkeypatch, environment):
    skyrlkit.install(monkeypatch)
    return recipekit.recipe("skyrl_trainer")


@pytest.fixture
def make(module, monkeypatch, tmp_path):
    return lambda **settings: skyrlkit.make(module, monkeypatch, tmp_path, PROBLEMS, **settings)


def test_batches_move_to_prompts_with_a_signal(make, scorer, run_id):
    trainer = make(steps=14)
    taken = skyrlkit.train(trainer)
    assert [len(batch) for batch in taken] == [8] * 14
    assert sum(map(useful, taken[-3:])) >= 16
    run = recipekit.run_of(scorer.url, run_id)
    assert (run.kind, run.policy_version) == ("pass_rates", 13)
    assert trainer.tracker.logged[-1]["gradalign/fallbacks"] == 0.0


def test_prompts_that_dynamic_sampling_drops_are_known_too(make, scorer, run_id):
    taken = skyrlkit.train(make(steps=2, filtering="filter"))
    assert all(useful(batch) == len(batch) for batch in taken)
    assert recipekit.run_of(scorer.url, run_id).problems > 8  # there are 8 with a signal


def test_a_trajectory_of_several_steps_has_the_reward_of_its_last(make, scorer, run_id):
    taken = skyrlkit.train(make(steps=14, turns=2))
    assert sum(map(useful, taken[-3:])) >= 16
    assert recipekit.run_of(scorer.url, run_id).problems <= len(PROBLEMS)


def test_a_run_that_loads_a_checkpoint_has_its_curriculum(make, scorer, run_id, tmp_path):
    skyrlkit.train(make(steps=8))
    assert recipekit.run_of(scorer.url, run_id).policy_version == 7
    skyrlkit.rewind(tmp_path, 4)
    again = make(steps=6)
    assert len(skyrlkit.train(again)) == 2  # four of six updates were behind it
    assert again.link.step == 6
    run = recipekit.run_of(scorer.url, run_id)
    assert (run.policy_version, run.epoch) == (5, 2)


def test_without_a_scorer_every_prompt_comes_once_an_epoch(make, environment):
    environment(url=recipekit.GONE)
    taken = skyrlkit.train(make(steps=3))
    assert sorted(name for batch in taken for name in batch) == sorted(PROBLEMS)


def test_the_entry_point_says_what_is_not_set_before_anything_starts(module, monkeypatch):
    monkeypatch.delenv("GRADALIGN_RUN_ID")
    with pytest.raises(SettingsError, match="GRADALIGN_RUN_ID is not set"):
        module.main()


def test_the_entry_point_runs_skyrls_experiment_with_this_trainer(module, monkeypatch):
    ran = []
    monkeypatch.setattr(module, "validate_cfg", lambda cfg: None)
    monkeypatch.setattr(module, "initialize_ray", lambda cfg: None)
    monkeypatch.setattr(module.ray, "get", lambda made: made)
    monkeypatch.setattr(module.run, "remote", lambda cfg, settings: ran.append((cfg, settings)))
    own = ["trainer.override_entrypoint=skyrl_trainer", "trainer.epochs=3"]
    monkeypatch.setattr("sys.argv", ["main_base.py", *own])
    module.main()
    assert ran[0][1] == module.PassRateSettings.from_environment()
    assert skyrlkit.epochs(ran[0][0]) == 3
    assert issubclass(module.CurriculumExp, module.BasePPOExp)


def test_a_trainer_without_a_training_set_says_what_it_needs(module, tmp_path):
    given = skyrlkit.given(tmp_path, PROBLEMS, 1, 1, None, skyrlkit.Generator())
    with pytest.raises(ValueError, match="expected a training set"):
        module.CurriculumTrainer(**{**given, "train_dataset": None})


def test_it_is_short():
    assert recipekit.lines_of("skyrl_trainer") < 150
