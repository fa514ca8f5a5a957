"""The recipe for slime and miles: slime's own data source and rollout where its source is here, else its stand-in."""

import pytest
import recipekit
import slimekit
from recipekit import PROBLEMS, useful


@pytest.fixture
def args(tmp_path):
    return slimekit.arguments(tmp_path, PROBLEMS)


@pytest.fixture
def make(monkeypatch, environment, args):
    slimekit.install(monkeypatch)
    module = recipekit.recipe("slime_source")
    made = []

    def give():
        made.append(module.CurriculumSource(args))
        return made[-1], module.report

    yield give
    for source in made:
        source.link.close()


def train(made, args, rollouts):
    source, report = made
    return [slimekit.roll_out(args, number, source, report) for number in rollouts]


def test_rollouts_move_to_problems_with_a_signal(make, args, scorer, run_id):
    taken = train(make(), args, range(12))
    assert all(len(set(batch)) == 8 for batch in taken)
    assert sum(map(useful, taken[-3:])) >= 16
    run = recipekit.run_of(scorer.url, run_id)
    assert (run.kind, run.policy_version) == ("pass_rates", 11)


def test_the_buffer_comes_first_and_the_dataset_stays_whole(make):
    source, _ = make()
    group = source.get_samples(1)[0]
    source.add_samples([group])
    taken = source.get_samples(3)
    assert taken[0] is group
    assert [len(each) for each in taken] == [8, 8, 8]
    assert len(source.dataset.samples) == len(PROBLEMS)
    assert len({sample.metadata["problem_id"] for sample in source.dataset.samples}) == len(PROBLEMS)


def test_a_restarted_rollout_manager_has_the_curriculum_of_its_checkpoint(make, args, scorer, run_id):
    made = make()
    train(made, args, range(4))
    made[0].save(3)
    train(made, args, range(4, 8))
    assert recipekit.run_of(scorer.url, run_id).policy_version == 7
    again = make()
    again[0].load(3)
    assert again[0].rollouts == 4
    again[0].get_samples(2)
    run = recipekit.run_of(scorer.url, run_id)
    assert (run.policy_version <= 4, run.epoch) == (True, 2)


def test_without_a_checkpoint_it_begins(make, args):
    source, _ = make()
    source.load(9)
    assert source.rollouts == 0


def test_without_a_scorer_every_prompt_comes_in_turn(make, args, environment):
    environment(url=recipekit.GONE)
    taken = train(make(), args, range(3))
    assert sorted(name for batch in taken for name in batch) == sorted(PROBLEMS)


def test_rollouts_without_a_reward_and_fanned_out_ones(make, args, scorer, run_id):
    source, report = make()
    first, second = source.get_samples(2)
    first[0].reward, second[0].reward, second[1].reward = 1.0, 0.0, 1.0
    report(args, [[[first[0]], [first[1]]], second], source.get_samples)
    assert recipekit.run_of(scorer.url, run_id).problems == 2
    with pytest.raises(TypeError, match="--data-source-path"):
        report(args, [], print)


def test_a_source_without_prompts_says_what_it_needs(make, monkeypatch):
    base = recipekit.recipe("slime_source").CurriculumSource.__mro__[1]
    monkeypatch.setattr(base, "__init__", lambda self, args: setattr(self, "dataset", None))
    with pytest.raises(ValueError, match="--prompt-data"):
        make()


def test_it_is_short():
    assert recipekit.lines_of("slime_source") < 150
