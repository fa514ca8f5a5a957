"""The recipe for AReaL: its own trainer, rollout engine and recover checkpoints where it is installed, else its stand-in."""

import shutil

import arealkit
import pytest
import recipekit
from recipekit import PROBLEMS, useful

SOLVER = {"workflow": "arealkit.Solver", "workflow_kwargs": {"problems": PROBLEMS}}


@pytest.fixture
def module(monkeypatch, environment):
    arealkit.install(monkeypatch)
    return recipekit.recipe("areal_trainer")


@pytest.fixture
def make(module, monkeypatch, tmp_path):
    made = []

    def give(**settings):
        for trainer in made:
            trainer.close()
        made.clear()
        made.append(arealkit.make(module, monkeypatch, tmp_path, PROBLEMS, **settings))
        return made[-1]

    yield give
    for trainer in made:
        trainer.close()


def train(trainer, **settings):
    trainer.train(**{**SOLVER, **settings})
    return trainer.actor.trained


def test_batches_move_to_problems_with_a_signal(make, scorer, run_id):
    taken = train(make(steps=14))
    assert [len(batch) for batch in taken] == [8] * 14
    assert sum(map(useful, taken[-3:])) >= 16
    run = recipekit.run_of(scorer.url, run_id)
    assert (run.kind, run.policy_version) == ("pass_rates", 13)


def test_its_figures_are_in_the_trainers_log(make):
    trainer = make(steps=2)
    train(trainer)
    assert trainer.actor.stats["gradalign/fallbacks"] == 0.0


def test_a_recovered_training_has_the_curriculum_of_its_checkpoint(make, scorer, run_id, tmp_path):
    train(make(steps=3, recover=True))
    shutil.copytree(tmp_path, tmp_path.with_suffix(".kept"))
    train(make(steps=6, recover=True))
    assert recipekit.run_of(scorer.url, run_id).policy_version == 5
    shutil.rmtree(tmp_path)
    tmp_path.with_suffix(".kept").rename(tmp_path)
    again = make(steps=4, recover=True)
    assert (again.rollout.get_version(), again.link.step) == (3, 2)
    assert len(train(again)) == 1  # three of four updates were behind it
    run = recipekit.run_of(scorer.url, run_id)
    assert (run.policy_version, run.epoch) == (3, 3)


def test_without_a_scorer_every_problem_comes_in_turn(make, environment):
    environment(url=recipekit.GONE)
    taken = train(make(steps=3))
    assert sorted(name for batch in taken for name in batch) == sorted(PROBLEMS)


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"dynamic_filter_fn": "math.sqrt"}, ValueError, "expected none"),
        ({"workflow": "builtins.dict"}, TypeError, "class of a RolloutWorkflow"),
        ({"workflow": object()}, TypeError, "class of a RolloutWorkflow"),
        ({"workflow": None}, TypeError, "class of a RolloutWorkflow"),
    ],
)
def test_what_it_cannot_do_is_refused_before_a_rollout(make, settings, kind, words):
    trainer = make(steps=1)
    with pytest.raises(kind, match=words):
        train(trainer, **settings)
    assert trainer.actor.trained == []


def test_a_workflow_is_given_by_its_class_too(make):
    assert len(train(make(steps=1), workflow=arealkit.Solver)) == 1


def test_a_workflow_without_rewards_is_refused(make):
    with pytest.raises((TypeError, KeyError), match="rewards"):
        train(make(steps=1), workflow="arealkit.Interacting")


def test_a_dataset_in_the_data_service_is_refused(module, tmp_path):
    with pytest.raises(TypeError, match="scheduling_spec is set"):
        module.CurriculumTrainer(None, arealkit.remote(tmp_path))


def test_ranks_of_their_own_are_refused(make, monkeypatch):
    monkeypatch.setenv("AREAL_SPMD_MODE", "1")
    with pytest.raises(ValueError, match="one controller"):
        make()


def test_it_is_short():
    assert recipekit.lines_of("areal_trainer") < 150
