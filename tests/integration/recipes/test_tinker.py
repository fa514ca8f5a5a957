"""The recipe for Tinker: tinker-cookbook's own dataset, groups and rollouts where it is installed, else its stand-in."""

import asyncio
import pickle

import pytest
import recipekit
import tinkerkit
from recipekit import PROBLEMS, useful


@pytest.fixture
def make(monkeypatch, environment):
    tinkerkit.install(monkeypatch)
    module = recipekit.recipe("tinker_dataset")
    made = []

    def give(folder=None, **named):
        made.append(module.CurriculumDataset(tinkerkit.dataset(PROBLEMS), 8, 100, folder=folder, save_every=4, **named))
        return made[-1]

    yield give
    for dataset in made:
        dataset.link.close()


def questions(batch):
    return [group.inner.env_thunk().get_question() for group in batch]


def train(dataset, batches):
    taken = []
    for index in batches:
        batch = dataset.get_batch(index)
        for group in batch:
            tinkerkit.roll_out(group)
        taken.append(questions(batch))
    return taken


def test_batches_move_to_problems_with_a_signal(make, scorer, run_id):
    dataset = make()
    taken = train(dataset, range(12))
    assert len(dataset) == 100
    assert all(len(set(batch)) == 8 for batch in taken)
    assert sum(map(useful, taken[-3:])) >= 16
    run = recipekit.run_of(scorer.url, run_id)
    assert (run.kind, run.policy_version) == ("pass_rates", 11)


def test_a_group_is_the_inner_one_but_for_its_report(make):
    group = make().get_batch(0)[0]
    assert group.logging_tags() == ["problems"]
    with pytest.raises(TypeError, match="set_rollout_executor"):
        pickle.dumps(group)


def test_a_training_that_starts_again_has_its_curriculum(make, scorer, run_id, tmp_path):
    train(make(tmp_path), range(7))
    assert [file.name for file in tmp_path.iterdir()] == ["000004.json"]
    assert recipekit.run_of(scorer.url, run_id).policy_version == 6
    again = make(tmp_path)
    again.get_batch(4)
    assert recipekit.run_of(scorer.url, run_id).policy_version <= 4
    assert recipekit.run_of(scorer.url, run_id).epoch == 2


def test_without_a_scorer_it_takes_every_problem_in_turn(make, environment):
    environment(url=recipekit.GONE)
    taken = train(make(), range(3))
    assert sorted(name for batch in taken for name in batch) == sorted(PROBLEMS)


def test_a_builder_wraps_the_one_that_was_there(make, tmp_path):
    module = recipekit.recipe("tinker_dataset")

    @module.chz.chz
    class Inner(module.RLDatasetBuilder):
        async def __call__(self):
            return tinkerkit.dataset(PROBLEMS), None

    builder = module.CurriculumBuilder(inner=Inner(), groups_per_batch=4, steps=9, log_path=str(tmp_path))
    train_set, test_set = asyncio.run(builder())
    assert (len(train_set), len(train_set.get_batch(0)), test_set) == (9, 4, None)
    assert train_set.folder == tmp_path / "gradalign"
    train_set.link.close()


def test_it_is_short():
    assert recipekit.lines_of("tinker_dataset") < 150
