"""Problems of reasoning_gym tasks: seeded, apart for each part, judged by the task itself."""

import pytest

from gradalign_trainer.datasets import DataError, load_problems, write_jsonl
from gradalign_trainer.datasets.sources.reasoning import task_dataset
from gradalign_trainer.problems import Problem
from gradalign_trainer.rewards.registry import make_reward
from gradalign_trainer.settings import SettingsError

pytest.importorskip("reasoning_gym", reason="reasoning_gym needs a C compiler to install")

CHAIN = {"kind": "reasoning_gym", "task": "chain_sum", "size": 20}
reward = make_reward("reasoning_gym")


def load(**more):
    seed, part = more.pop("run_seed", 0), more.pop("part", "pool")
    return load_problems(CHAIN | more, seed=seed, part=part).problems


def test_the_same_seed_gives_the_same_problems():
    assert load(seed=3) == load(seed=3)
    assert load(run_seed=5) == load(run_seed=5)
    assert [problem.problem_id for problem in load(seed=3, size=2)] == ["chain_sum/3/0", "chain_sum/3/1"]
    assert {problem.source for problem in load()} == {"reasoning_gym/chain_sum"}


def test_parts_and_seeds_of_a_run_get_other_problems():
    lots = [load(), load(run_seed=1), load(part="validation"), load(part="heldout")]
    assert len({problem.problem_id for lot in lots for problem in lot}) == 80
    assert len({tuple(problem.prompt for problem in lot) for lot in lots}) == 4
    assert load(seed=3, part="pool") == load(seed=3, part="heldout")


def test_the_config_reaches_the_task_and_the_id():
    problems = load(config={"min_terms": 2, "max_terms": 2}, seed=1)
    assert all(problem.prompt.count("+") + problem.prompt.count(" - ") <= 2 for problem in problems)
    assert problems[0].problem_id.startswith("chain_sum-")
    assert problems[0].problem_id.endswith("/1/0")
    other = load(config={"min_terms": 3, "max_terms": 3}, seed=1)
    assert not {problem.problem_id for problem in problems} & {problem.problem_id for problem in other}


def test_a_limit_stops_the_generation():
    assert load(seed=1, limit=4) == load(seed=1)[:4]


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ({"task": "chain_sm"}, r"no task 'chain_sm' \(did you mean 'chain_sum'\?\)\. It has \d+, among them"),
        ({"config": {"max_term": 3}}, r"no setting 'max_term' \(did you mean 'max_terms'\?\)\. It has "),
        ({"config": {"min_terms": 9, "max_terms": 2}}, r"does not take config = .*AssertionError.*Its settings are"),
    ],
)
def test_a_bad_task_or_config_is_refused_with_what_there_is(source, fault):
    with pytest.raises(DataError, match=fault):
        load(**source)


def test_the_task_judges_its_own_answers():
    for problem in load(seed=2, size=5):
        assert reward(problem, problem.answer) == 1.0
        assert reward(problem, f"  {problem.answer}\n") == 1.0
        assert reward(problem, f"I think <answer>1e9</answer>, no: <answer>{problem.answer}</answer>") == 1.0
        assert reward(problem, "12345678") < 0.5


def test_problems_are_judged_the_same_after_a_trip_through_a_file(tmp_path):
    problems = load(seed=2, size=3)
    write_jsonl(problems, tmp_path / "a.jsonl")
    for problem in load_problems(f"{tmp_path}/a.jsonl").problems:
        assert reward(problem, problem.answer) == 1.0


def test_a_completion_that_makes_the_verifier_raise_scores_nothing():
    (problem,) = load_problems({"kind": "reasoning_gym", "task": "prime_factorization", "size": 1, "seed": 0}).problems
    with pytest.raises(ValueError, match="invalid literal"):
        task_dataset("prime_factorization", problem.extra["config"]).score_answer("abc", problem.extra["entry"])
    assert reward(problem, "abc") == 0.0
    assert reward(problem, problem.answer) == 1.0


def test_problems_of_other_sources_are_refused():
    with pytest.raises(SettingsError, match="problem 'p1' of source 'sums', which no reasoning_gym task made"):
        reward(Problem("p1", "2+3=", "5", "sums"), "5")
