"""The recipe for NeMo-RL: its own GRPO, rollouts and checkpoints where its source is here, else its stand-in."""

import nemokit
import pytest
import recipekit
from recipekit import PROBLEMS, useful


@pytest.fixture
def module(monkeypatch, environment):
    nemokit.install(monkeypatch)
    return recipekit.recipe("nemo_rl_driver")


@pytest.fixture
def train(module, monkeypatch, tmp_path):
    """Runs a script through the driver, which trains to a step; the problems of each update, and the log."""
    (tmp_path / "run_grpo.py").write_text(nemokit.SCRIPT)

    def run(steps, **settings):
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["nemo_rl_driver.py", str(tmp_path / "run_grpo.py"), "--config", "x.yaml"])
            policy, log = nemokit.fill(module.grpo, patch, tmp_path, PROBLEMS, steps, **settings)
            module.main()
        return policy.trained, log.logged

    return run


def test_batches_move_to_problems_with_a_signal(train, scorer, run_id):
    taken, logged = train(14)
    assert [len(batch) for batch in taken] == [8] * 14
    assert sum(map(useful, taken[-3:])) >= 16
    run = recipekit.run_of(scorer.url, run_id)
    assert (run.kind, run.policy_version) == ("pass_rates", 13)
    figures = [(step, metrics["fallbacks"]) for prefix, step, metrics in logged if prefix == "gradalign"]
    assert figures == [(step + 1, 0.0) for step in range(14)]


def test_problems_that_dynamic_sampling_drops_are_known_too(train, scorer, run_id):
    taken, _ = train(2, dynamic=True)
    assert all(useful(batch) == len(batch) for batch in taken)
    assert recipekit.run_of(scorer.url, run_id).problems > 8  # there are 8 with a signal


def test_a_run_that_loads_a_checkpoint_has_its_curriculum(train, scorer, run_id, tmp_path):
    assert len(train(8)[0]) == 8
    assert recipekit.run_of(scorer.url, run_id).policy_version == 7
    nemokit.rewind(tmp_path, 4)
    taken, _ = train(6, total_steps=4)
    assert len(taken) == 2  # four of six updates were behind it
    run = recipekit.run_of(scorer.url, run_id)
    assert (run.policy_version, run.epoch) == (5, 2)


def test_without_a_scorer_every_problem_comes_once_an_epoch(train, environment):
    environment(url=recipekit.GONE)
    taken, logged = train(3)
    assert sorted(name for batch in taken for name in batch) == sorted(PROBLEMS)
    assert [metrics["fallbacks"] for prefix, _, metrics in logged if prefix == "gradalign"] == [1, 2, 3]


def test_what_was_put_in_is_taken_out_again(train, module):
    before = module.grpo.scale_rewards
    train(1)
    assert module.grpo.scale_rewards is before


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"async_grpo": True}, "grpo.async_grpo.enabled"),
        ({"data_plane": {"enabled": True}}, "data_plane.enabled"),
        ({"data": {"use_multiple_dataloader": True}}, "data.use_multiple_dataloader"),
        ({"env": {"should_use_nemo_gym": True}}, "env.should_use_nemo_gym"),
    ],
)
def test_a_training_whose_rewards_do_not_come_by_is_refused_at_its_setup(train, settings, name):
    with pytest.raises(SystemExit, match=f"{name} is set.*expected false"):
        train(1, **settings)


def test_it_wants_the_path_of_a_script(module, monkeypatch):
    monkeypatch.setattr("sys.argv", ["nemo_rl_driver.py", "--config", "x.yaml"])
    with pytest.raises(SystemExit, match="expected the path of NeMo-RL's"):
        module.main()


def test_it_is_short():
    assert recipekit.lines_of("nemo_rl_driver") < 150
