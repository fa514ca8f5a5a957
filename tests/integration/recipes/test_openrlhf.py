"""The recipe for OpenRLHF: its own trainer, generator, dataset and loader where it is installed, else its stand-in."""

import openrlhfkit
import pytest
import recipekit
from recipekit import PROBLEMS, useful


@pytest.fixture
def module(monkeypatch, environment):
    openrlhfkit.install(monkeypatch)
    found = recipekit.recipe("openrlhf_driver")
    found.CurriculumTrainer.settings = found.PassRateSettings.from_environment()
    return found


@pytest.fixture
def actors():
    return openrlhfkit.Actors()


@pytest.fixture
def make(module, monkeypatch, tmp_path, actors):
    return lambda **settings: openrlhfkit.make(module, monkeypatch, tmp_path, actors, PROBLEMS, **settings)


def batches(actors):
    return [set(batch) for batch in actors.trained]


def test_generation_moves_to_prompts_with_a_signal(make, actors, scorer, run_id):
    make(train__num_episodes=4).fit()
    taken = batches(actors)
    assert [len(batch) for batch in taken] == [8] * 12
    assert sum(map(useful, taken[-3:])) >= 16
    run = recipekit.run_of(scorer.url, run_id)
    assert (run.kind, run.policy_version) == ("pass_rates", 11)


def test_prompts_that_dynamic_filtering_drops_are_known_too(make, actors, scorer, run_id):
    make(train__num_episodes=2, algo__dynamic_filtering_enable=True).fit()
    assert all(useful(batch) == len(batch) for batch in batches(actors))
    assert recipekit.run_of(scorer.url, run_id).problems > 8  # there are 8 with a signal


def test_a_run_that_loads_a_checkpoint_has_its_curriculum(make, actors, scorer, run_id):
    make(train__num_episodes=1).fit()
    assert actors.kept["global_step"] == 2
    assert recipekit.run_of(scorer.url, run_id).policy_version == 2
    trained = len(actors.trained)
    again = make(train__num_episodes=1)
    states = again.init_checkpoint_states()
    assert (states["global_step"], again.link.step) == (2, states["gradalign"]["step"])
    again.fit()
    assert len(actors.trained) == trained + 1  # of three batches an epoch two were behind it
    assert recipekit.run_of(scorer.url, run_id).epoch == 2


def test_without_a_scorer_every_prompt_comes_once_an_epoch(make, actors, module, environment):
    environment(url=recipekit.GONE)
    module.CurriculumTrainer.settings = module.PassRateSettings.from_environment()
    make(train__num_episodes=1).fit()
    assert sorted(name for batch in batches(actors) for name in batch) == sorted(PROBLEMS)


def test_it_runs_openrlhfs_command_with_its_trainer(module, monkeypatch):
    ran = []
    monkeypatch.setattr(module.runpy, "run_module", lambda name, run_name: ran.append((name, run_name)))
    monkeypatch.setattr(module.ppo_trainer, "PPOTrainer", module.ppo_trainer.PPOTrainer)
    module.main()
    assert ran == [("openrlhf.cli.train_ppo_ray", "__main__")]
    put_in = module.ppo_trainer.PPOTrainer
    assert getattr(put_in, "__ray_actor_class__", put_in) in module.CurriculumTrainer.__mro__
    monkeypatch.setattr("sys.argv", ["openrlhf_driver.py", "--train.async_enable"])
    with pytest.raises(SystemExit, match="leave it out"):
        module.main()


def test_it_is_short():
    assert recipekit.lines_of("openrlhf_driver") < 150
