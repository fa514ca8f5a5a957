"""Regimes over any tasks: the share of each kind of bad problem, and ids that say nothing of it."""

import random
from collections import Counter

import pytest

from gradalign_trainer.problems import Problem
from gradalign_trainer.rewards.registry import make_reward
from gradalign_trainer.worlds.tasks.spoiling import REGIMES, SHARES, spoiled

COUNT = 3000
TARGET = [Problem(f"t{n}", f"What is {n}?", str(n), "target", {"slip": str(n + 1)}) for n in range(COUNT)]


def others(count):
    return [Problem(f"o{n}", f"Other {n}?", "yes", "others") for n in range(count)]


def pool_of(regime, target=TARGET, seed=0):
    return spoiled(regime, target, others, random.Random(seed))


@pytest.mark.parametrize("regime", REGIMES)
def test_the_share_of_bad_problems_is_the_regimes(regime):
    pool = pool_of(regime)
    assert len(pool) == COUNT
    assert pool == pool_of(regime)
    bad = [problem for problem in pool if not problem.extra["good"]]
    share = sum(SHARES[regime].values())
    assert len(bad) / COUNT == pytest.approx(share, abs=5 * (share * (1 - share) / COUNT) ** 0.5 + 1e-9)
    ids = [problem.problem_id for problem in pool]
    assert len(set(ids)) == COUNT
    assert all(len(each) == 16 and set(each) <= set("0123456789abcdef") for each in ids)


def rewards(problem, *completions):
    reward = make_reward("graded")
    return [reward(problem, completion) for completion in completions]


def kinds_of(regime):
    return [problem for problem in pool_of(regime) if not problem.extra["good"]]


def test_graders_lie_as_the_regime_says():
    first = kinds_of("inverted")[0]
    assert rewards(first, first.answer, "no") == [0.0, 1.0]
    first = kinds_of("mislabelled")[0]
    right = first.prompt.removeprefix("What is ").removesuffix("?")
    assert rewards(first, right, str(int(right) + 1)) == [0.0, 1.0]
    coin = kinds_of("coin")[0]
    assert set(rewards(coin, *["no"] * 40)) == {0.0, 1.0}
    assert all(rewards(problem, problem.answer, "no") == [1.0, 0.0] for problem in pool_of("clean")[:20])


def test_a_pool_of_low_utility_has_all_kinds():
    bad = kinds_of("low-utility")
    off = [problem for problem in bad if problem.source == "others"]
    graders = Counter(problem.extra["grader"] for problem in bad if problem.source == "target")
    lenient = next(problem for problem in bad if problem.extra["grader"] == "lenient")
    assert rewards(lenient, "anything") == [1.0]
    impossible = [problem for problem in bad if problem.source == "target" and problem.extra["grader"] == "honest"]
    assert all(len(problem.answer) > 10 for problem in impossible)
    shares = SHARES["low-utility"]
    assert len(off) / COUNT == pytest.approx(shares["off-target"], abs=0.04)
    assert graders["coin"] / COUNT == pytest.approx(shares["coin"], abs=0.04)
    assert len(impossible) / COUNT == pytest.approx(shares["impossible"], abs=0.04)


def test_without_a_slip_another_problems_answer_is_the_wrong_one():
    plain = [Problem(f"t{n}", f"What is {n}?", str(n // 2), "target") for n in range(200)]
    pool = spoiled("mislabelled", plain, others, random.Random(0))
    wrong = [(problem, own) for problem, own in zip(pool, plain, strict=True) if problem.answer != own.answer]
    assert wrong
    assert all(not problem.extra["good"] for problem, _ in wrong)
    # Another's answer that happens to be the same is right, and the problem good.
    assert all(problem.extra["good"] for problem, own in zip(pool, plain, strict=True) if problem.answer == own.answer)
