"""Word problems: right answers, slips that are wrong, and texts that name the numbers."""

import random
import re

import pytest

from gradalign_trainer.worlds.tasks.wordproblems import LEVELS, word_problem

DRAWS = 300


@pytest.mark.parametrize("level", LEVELS)
def test_problems_keep_to_their_level(level):
    rng = random.Random(0)
    for _ in range(DRAWS):
        problem = word_problem(LEVELS[level], rng)
        numbers = [int(text) for text in re.findall(r"\d+", problem.question)]
        assert len(numbers) in (LEVELS[level].steps, LEVELS[level].steps + 1)
        assert max(numbers) <= LEVELS[level].largest
        assert problem.answer >= 0 <= problem.slip != problem.answer
        assert "{" not in problem.question


def solved(question):
    """The answer, by the words of the question alone."""
    a, b, *rest = (int(text) for text in re.findall(r"\d+", question))
    if rest:
        return a - b + rest[0] if "lost" in question else a + b - rest[0]
    if "more than" in question:
        return a + a + b
    return a - b if "gave" in question or "less" in question else a + b


@pytest.mark.parametrize("level", LEVELS)
def test_answers_are_what_the_words_say(level):
    rng = random.Random(1)
    problems = [word_problem(LEVELS[level], rng) for _ in range(DRAWS)]
    assert [problem.answer for problem in problems] == [solved(problem.question) for problem in problems]


def test_a_seed_draws_the_same_problems():
    def drawn(seed):
        rng = random.Random(seed)
        return [word_problem(LEVELS["one-step-9"], rng) for _ in range(20)]

    assert drawn(3) == drawn(3) != drawn(4)
