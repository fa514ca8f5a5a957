"""The built-in world: skills, rewards that lie, and worlds whose parts share nothing."""

import random

import pytest

from gradalign_trainer.arithmetic import (
    CHARACTERS,
    INVERTED_SHARE,
    OFF_TARGET_SHARE,
    REGIMES,
    RIGHT_SHARE,
    RIVAL,
    SKILLS,
    TARGET,
    arithmetic_problem,
    arithmetic_reward,
    make_world,
    noisy_answer,
)


@pytest.mark.parametrize(
    ("a", "skill", "b", "answer"),
    [
        (47, "+", 38, "85"),
        (99, "+", 99, "198"),
        (0, "+", 0, "0"),
        (47, "-", 38, "9"),
        (38, "-", 47, "9"),
        (47, "M", 38, "47"),
        (7, "M", 38, "38"),
        (47, "R", 38, "7483"),
        (40, "R", 5, "0450"),
        (47, "S", 38, "22"),
        (0, "S", 99, "18"),
        (47, "C", 38, "75"),
        (12, "C", 34, "46"),
        (99, "C", 99, "188"),
        (47, "?", 38, "7"),
    ],
)
def test_skills_are_as_documented(a, skill, b, answer):
    problem = arithmetic_problem(a, skill, b)
    assert problem.answer == answer
    assert problem.prompt == f"{a:02d}{skill}{b:02d}="
    assert problem.problem_id == f"{a:02d}{skill}{b:02d}"
    assert problem.source == f"arithmetic/{skill}"
    assert set(problem.prompt + answer) <= set(CHARACTERS)


def test_the_rival_is_the_target_without_its_carries():
    for a in range(100):
        for b in range(100):
            carries = a % 10 + b % 10 >= 10
            assert (SKILLS[RIVAL](a, b) != SKILLS[TARGET](a, b)) == carries


def test_rewards_are_for_the_answer_and_lie_where_inverted():
    honest, lying = (arithmetic_problem(47, "+", 38, inverted=inverted) for inverted in (False, True))
    assert [arithmetic_reward(honest, text) for text in ("85", " 85\n", "84", "")] == [1.0, 1.0, 0.0, 0.0]
    assert [arithmetic_reward(lying, text) for text in ("85", " 85\n", "84", "")] == [0.0, 0.0, 1.0, 1.0]
    assert honest.problem_id != lying.problem_id


@pytest.mark.parametrize("skill", SKILLS)
def test_the_corpus_is_right_about_as_often_as_stated(skill):
    rng = random.Random(0)
    pairs = [(rng.randrange(100), rng.randrange(100)) for _ in range(4000)]
    answers = [noisy_answer(a, skill, b, rng) for a, b in pairs]
    right = sum(said == SKILLS[skill](a, b) for said, (a, b) in zip(answers, pairs, strict=True)) / 4000
    assert RIGHT_SHARE - 0.03 < right < 0.95
    assert set("".join(answers)) <= set("0123456789")
    assert max(map(len, answers)) <= 4


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
    assert not any(problem.extra["inverted"] for problem in [*world.validation, *world.heldout])


@pytest.mark.parametrize(
    ("regime", "inverted", "off_target"),
    [("clean", 0.0, 0.0), ("inverted", INVERTED_SHARE, 0.0), ("imbalance", 0.0, OFF_TARGET_SHARE)],
)
def test_a_pool_is_spoiled_as_its_regime_says(regime, inverted, off_target):
    pool = make_world(regime, seed=0, pool=5000).pool
    assert sum(problem.extra["inverted"] for problem in pool) / 5000 == pytest.approx(inverted, abs=0.03)
    strays = [problem for problem in pool if problem.source != "arithmetic/+"]
    assert len(strays) / 5000 == pytest.approx(off_target, abs=0.02)
    if strays:
        counts = {skill: sum(problem.prompt[2] == skill for problem in strays) for skill in SKILLS if skill != TARGET}
        assert min(counts.values()) > 0
        assert max(counts, key=counts.get) == RIVAL


def test_the_regime_documents_its_share():
    assert INVERTED_SHARE == 0.5
    assert "half" in REGIMES["inverted"]
    assert f"{OFF_TARGET_SHARE:.0%}" in REGIMES["imbalance"]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"regime": "claen"}, "regime is 'claen'; expected one of clean, inverted, imbalance"),
        ({"regime": "clean", "pool": 9600, "heldout": 400}, "must be at least 1 each and sum to at most 10000"),
        ({"regime": "clean", "validation": 0}, "must be at least 1 each"),
    ],
)
def test_worlds_that_cannot_be_are_refused(settings, fault):
    with pytest.raises(ValueError, match=fault):
        make_world(**settings, seed=0)
