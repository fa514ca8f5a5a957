"""Arithmetic problems: skills, slips, and rewards that lie."""

import random

import pytest

from gradalign_trainer.worlds.arithmetic import (
    CHARACTERS,
    GRADERS,
    RIGHT_SHARE,
    RIVAL,
    SKILLS,
    TARGET,
    ArithmeticReward,
    arithmetic_problem,
    forget_carry,
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
    assert problem.extra == {"grader": "honest", "good": skill == TARGET}
    assert problem.source == f"arithmetic/{skill}"
    assert set(problem.prompt + answer) <= set(CHARACTERS)


def test_the_rival_is_the_target_without_its_carries():
    for a in range(100):
        for b in range(100):
            carries = a % 10 + b % 10 >= 10
            assert (SKILLS[RIVAL](a, b) != SKILLS[TARGET](a, b)) == carries


@pytest.mark.parametrize(
    ("grader", "earned"), [("honest", [1, 1, 0, 0]), ("inverted", [0, 0, 1, 1]), ("lenient", [1, 1, 1, 1])]
)
def test_rewards_are_as_the_grader_says(grader, earned):
    problem = arithmetic_problem(47, "+", 38, grader=grader)
    assert [ArithmeticReward()(problem, text) for text in ("85", " 85\n", "84", "")] == earned
    assert problem.extra["good"] == (grader == "honest")
    assert set(GRADERS) == {"honest", "inverted", "lenient", "coin"}


def test_coins_fall_by_chance_and_the_same_from_the_same_place_of_a_run():
    problem, reward = arithmetic_problem(47, "+", 38, grader="coin"), ArithmeticReward()
    reward.begin("0/3/update/1")
    tosses = [reward(problem, "85") for _ in range(400)]
    assert 160 < sum(tosses) < 240
    reward.begin("0/3/update/1")
    assert [reward(problem, "84") for _ in range(400)] == tosses
    reward.begin("0/4/update/1")
    assert [reward(problem, "85") for _ in range(400)] != tosses


def test_a_wrong_reference_is_not_good_and_a_right_one_is():
    assert not arithmetic_problem(47, "+", 38, answer=str(forget_carry(47, 38))).extra["good"]
    assert arithmetic_problem(41, "+", 38, answer=str(forget_carry(41, 38))).extra["good"]


def test_ids_say_nothing_of_skill_numbers_or_grader():
    ids = [arithmetic_problem(a, skill, 7).problem_id for a in range(100) for skill in SKILLS]
    assert len(set(ids)) == len(ids)
    assert {len(problem_id) for problem_id in ids} == {16}
    assert not any(mark in problem_id for problem_id in ids for mark in SKILLS if mark != "C")
    assert arithmetic_problem(1, "+", 7, grader="coin").problem_id == arithmetic_problem(1, "+", 7).problem_id
    ranks = sorted(range(700), key=lambda i: ids[i])
    assert 290 < sum(ranks[:350]) / 350 < 410  # small numbers come no earlier


@pytest.mark.parametrize("skill", SKILLS)
def test_the_corpus_is_right_about_as_often_as_stated(skill):
    rng = random.Random(0)
    pairs = [(rng.randrange(100), rng.randrange(100)) for _ in range(4000)]
    answers = [noisy_answer(a, skill, b, rng) for a, b in pairs]
    right = sum(said == SKILLS[skill](a, b) for said, (a, b) in zip(answers, pairs, strict=True)) / 4000
    assert RIGHT_SHARE - 0.03 < right < 0.95
    assert set("".join(answers)) <= set("0123456789")
    assert max(map(len, answers)) <= 4
