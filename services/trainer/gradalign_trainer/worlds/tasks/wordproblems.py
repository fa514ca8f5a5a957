"""Word problems of one or two steps with whole numbers, of the kind of GSM8K but small enough for a small model.

A template is a text, the right answer, and a slip: the answer of somebody who takes the wrong step, or stops behind the
first. Slips are what confident wrong labels are made of.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["LEVELS", "Level", "WordProblem", "word_problem"]

NAMES = ("Ada", "Ben", "Carla", "Dan", "Eva", "Finn", "Grace", "Hugo", "Ines", "Jack", "Kim", "Leo", "Mia", "Noah")
THINGS = ("apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "pens", "shells", "stamps", "stickers")

Numbers = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class WordProblem:
    """One problem.

    Attributes:
        question: in words.
        answer: the right one, from 0 on.
        slip: a wrong one, from 0 on, that a step taken wrongly gives.
    """

    question: str
    answer: int
    slip: int


@dataclass(frozen=True, slots=True)
class Level:
    """How hard problems are.

    Attributes:
        steps: of arithmetic, 1 or 2.
        largest: number that a text names.
    """

    steps: int
    largest: int


@dataclass(frozen=True, slots=True)
class _Template:
    text: str
    answer: Callable[[int, int, int], int]
    slip: Callable[[int, int, int], int]


_ONE_STEP = (
    _Template(
        "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
        lambda a, b, c: a + b,  # noqa: ARG005
        lambda a, b, c: abs(a - b),  # noqa: ARG005
    ),
    _Template(
        "{name} had {a} {things} and gave {b} of them away. How many {things} does {name} have left?",
        lambda a, b, c: a - b,  # noqa: ARG005
        lambda a, b, c: a + b,  # noqa: ARG005
    ),
    _Template(
        "There are {a} {things} on the table and {b} {things} in a box. How many {things} are there in all?",
        lambda a, b, c: a + b,  # noqa: ARG005
        lambda a, b, c: abs(a - b),  # noqa: ARG005
    ),
    _Template(
        "{name} has {a} {things}. A friend has {b} {things} less. How many {things} does the friend have?",
        lambda a, b, c: a - b,  # noqa: ARG005
        lambda a, b, c: a + b,  # noqa: ARG005
    ),
)
_TWO_STEPS = (
    _Template(
        "{name} has {a} {things}, gets {b} more and gives {c} away. How many {things} does {name} have now?",
        lambda a, b, c: a + b - c,
        lambda a, b, c: a + b,  # noqa: ARG005
    ),
    _Template(
        "{name} had {a} {things}, lost {b} and then found {c}. How many {things} does {name} have now?",
        lambda a, b, c: a - b + c,
        lambda a, b, c: a - b,  # noqa: ARG005
    ),
    _Template(
        "{name} has {a} {things}. A friend has {b} more than {name}. How many {things} do both have together?",
        lambda a, b, c: a + a + b,  # noqa: ARG005
        lambda a, b, c: a + b,  # noqa: ARG005
    ),
)
_TEMPLATES: Mapping[int, Sequence[_Template]] = {1: _ONE_STEP, 2: _TWO_STEPS}

LEVELS: Mapping[str, Level] = {
    "one-step-9": Level(1, 9),
    "one-step-20": Level(1, 20),
    "one-step-50": Level(1, 50),
    "one-step-99": Level(1, 99),
    "two-steps-9": Level(2, 9),
    "two-steps-20": Level(2, 20),
}
"""By name: the steps, and the largest number that a text names."""


def word_problem(level: Level, rng: random.Random) -> WordProblem:
    """Draw a problem; no quantity in it is negative, and the slip is another number than the answer.

    Args:
        level: how hard.
        rng: what it is drawn from.
    """
    while True:
        template = rng.choice(_TEMPLATES[level.steps])
        second, first = sorted((rng.randint(1, level.largest), rng.randint(2, level.largest)))
        third = rng.randint(1, max(second, 2) - 1)
        numbers: Numbers = first, second, third
        answer, slip = template.answer(*numbers), template.slip(*numbers)
        if answer != slip:
            words = {"name": rng.choice(NAMES), "things": rng.choice(THINGS)}
            text = template.text.format(a=first, b=second, c=third, **words)
            return WordProblem(text, answer, slip)
