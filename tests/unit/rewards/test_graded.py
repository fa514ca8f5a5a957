"""The reward of graders that may lie."""

import pytest

from gradalign_trainer.problems import ChanceReward, Problem
from gradalign_trainer.rewards.graded import GRADERS, GradedReward
from gradalign_trainer.rewards.registry import make_reward
from gradalign_trainer.settings import SettingsError


def problem(grader=None, **extra):
    return Problem("p", "2+3=", "5", extra={**({"grader": grader} if grader else {}), **extra})


def test_graders_speak_of_the_verifiers_word():
    reward = make_reward("graded")
    found = {grader: [reward(problem(grader), text) for text in ("5", "6")] for grader in GRADERS if grader != "coin"}
    assert found == {"honest": [1.0, 0.0], "inverted": [0.0, 1.0], "lenient": [1.0, 1.0]}
    assert reward(problem(), "5") == 1.0


def test_partial_credit_is_inverted_too_and_a_verifier_is_made_once():
    made = []

    def make(name):
        made.append(name)
        return lambda problem, text: 0.25

    reward = GradedReward(make)
    assert [reward(problem("inverted", verifier="v"), ""), reward(problem(verifier="v"), "")] == [0.75, 0.25]
    assert made == ["v"]


def test_coins_fall_as_they_do_behind_a_key():
    reward = make_reward("graded")
    assert isinstance(reward, ChanceReward)
    falls = []
    for key in ("a", "b", "a"):
        reward.begin(key)
        falls.append([reward(problem("coin"), "5") for _ in range(64)])
    assert falls[0] == falls[2] != falls[1]
    assert 12 <= sum(falls[0]) <= 52  # outside with a chance of 5e-7


def test_an_unknown_verifier_is_named():
    with pytest.raises(SettingsError, match="reward 'exakt': expected one of"):
        make_reward("graded")(problem(verifier="exakt"), "5")
