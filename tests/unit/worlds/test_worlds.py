"""The built-in worlds: parts that share nothing, and pools spoiled as their regime says."""

from collections import Counter

import pytest

from gradalign_trainer.worlds.arithmetic import RIVAL, SKILLS, TARGET, ArithmeticReward, forget_carry
from gradalign_trainer.worlds.regimes import (
    LOW_UTILITY,
    LOW_UTILITY_SHARE,
    OFF_TARGET_SHARE,
    REGIMES,
    UNRELIABLE,
    UNRELIABLE_SHARE,
    make_world,
)


def numbers(problem):
    return int(problem.prompt[:2]), int(problem.prompt[3:5])


@pytest.mark.parametrize("regime", REGIMES)
def test_a_world_is_seeded_and_its_parts_share_no_question(regime):
    world, again, other = (make_world(regime, seed=seed, pool=500, heldout=100) for seed in (1, 1, 2))
    assert world == again
    assert world.pool != other.pool
    assert world.heldout != other.heldout
    questions = [problem.prompt.replace(problem.prompt[2], "?") for part in
                 (world.pool, world.validation, world.heldout) for problem in part]  # fmt: skip
    assert len(set(questions)) == len(questions)
    ids = [problem.problem_id for problem in world.pool]
    assert len(set(ids)) == len(ids) == 500


@pytest.mark.parametrize("regime", REGIMES)
def test_trusted_problems_are_on_target_and_honest(regime):
    world = make_world(regime, seed=3)
    assert {problem.source for problem in world.validation} == {"validation/+"}
    assert {problem.source for problem in world.heldout} == {"heldout/+"}
    assert all(problem.extra["good"] for problem in [*world.validation, *world.heldout])


@pytest.mark.parametrize("regime", UNRELIABLE)
def test_half_of_an_unreliable_pool_is_marked_as_its_regime_says(regime):
    pool = make_world(regime, seed=0, pool=5000).pool
    assert {problem.source for problem in pool} == {"arithmetic/+"}
    honest = [p for p in pool if p.extra["grader"] == "honest" and p.answer == SKILLS[TARGET](*numbers(p))]
    bad = [problem for problem in pool if not problem.extra["good"]]
    assert len(honest) + len(bad) == len(pool)
    reward = ArithmeticReward()
    if regime == "misconception":  # a right answer, where there is nothing to carry
        assert len(bad) / 5000 == pytest.approx(UNRELIABLE_SHARE * 0.45, abs=0.03)
        assert all(problem.answer == str(forget_carry(*numbers(problem))) for problem in bad)
    else:
        assert len(bad) / 5000 == pytest.approx(UNRELIABLE_SHARE, abs=0.03)
    if regime in ("near-miss", "random-number"):
        errors = [int(problem.answer) - sum(numbers(problem)) for problem in bad]
        assert (set(errors) == {-1, 1}) == (regime == "near-miss")
        assert all(errors)
    if regime == "inverted":
        assert not any(reward(problem, problem.answer) for problem in bad)
    if regime == "coin":
        earned = sum(reward(problem, problem.answer) for problem in bad) / len(bad)
        assert earned == pytest.approx(0.5, abs=0.05)


def test_most_of_an_imbalanced_pool_is_off_target():
    pool = make_world("imbalance", seed=0, pool=5000).pool
    strays = [problem for problem in pool if problem.source != "arithmetic/+"]
    assert [problem for problem in pool if not problem.extra["good"]] == strays
    assert len(strays) / 5000 == pytest.approx(OFF_TARGET_SHARE, abs=0.02)
    counts = Counter(problem.prompt[2] for problem in strays)
    assert set(counts) == set(SKILLS) - {TARGET}
    assert counts.most_common(1)[0][0] == RIVAL


def test_a_pool_of_low_utility_is_mixed_as_stated():
    pool = make_world("low-utility", seed=0, pool=6000).pool
    kinds = Counter(
        "good" if p.extra["good"] else "off-target" if p.prompt[2] != TARGET
        else {"lenient": "trivial", "coin": "coin", "honest": "impossible"}[p.extra["grader"]] for p in pool
    )  # fmt: skip
    assert kinds["good"] / 6000 == pytest.approx(1 - LOW_UTILITY_SHARE, abs=0.02)
    for kind, share in LOW_UTILITY.items():
        assert kinds[kind] / 6000 == pytest.approx(LOW_UTILITY_SHARE * share, abs=0.02)
    assert sum(LOW_UTILITY.values()) == pytest.approx(1)
    impossible = next(p for p in pool if not p.extra["good"] and p.extra["grader"] == "honest" and p.prompt[2] == "+")
    assert len(impossible.answer) > 6  # tokens of a completion


def test_the_regimes_document_their_shares():
    assert UNRELIABLE_SHARE == 0.5
    assert all("half" in REGIMES[regime] for regime in UNRELIABLE)
    assert f"{OFF_TARGET_SHARE:.0%}" in REGIMES["imbalance"]
    assert f"{LOW_UTILITY_SHARE:.0%}" in REGIMES["low-utility"]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"regime": "claen"}, "regime is 'claen'; expected one of clean, inverted, misconception, "),
        ({"regime": "clean", "pool": 9600, "heldout": 400}, "must be at least 1 each and sum to at most 10000"),
        ({"regime": "clean", "validation": 0}, "must be at least 1 each"),
    ],
)
def test_worlds_that_cannot_be_are_refused(settings, fault):
    with pytest.raises(ValueError, match=fault):
        make_world(**settings, seed=0)
