"""Built-in arithmetic: problems of seven skills, slips, and graders that lie, with no download.

A prompt reads `ddOPdd=`: two numbers of two digits and one of seven skills. `+` is what we want to get better at; the
other six are what real pools are full of: problems that are sound and teach something else.

    +  sum                   47+38=85        R  each number reversed    47R38=7483
    -  difference, unsigned  47-38=9         S  sum of the four digits  47S38=22
    M  larger of the two     47M38=47        C  sum without the carry   47C38=75
    ?  always 7              47?38=7

`C` is the rival of `+`: getting better at it makes the model forget carries, a sound problem that harms the target.

The base model learns from answers that are right with probability 0.3 and otherwise a plausible slip, so that
reinforcement learning finds the right answer in reach and yet has something to gain.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping

from gradalign_trainer.problems import Problem

__all__ = [
    "CHARACTERS",
    "GRADERS",
    "RIVAL",
    "SKILLS",
    "TARGET",
    "ArithmeticReward",
    "arithmetic_problem",
    "forget_carry",
    "noisy_answer",
]

TARGET = "+"
RIVAL = "C"  # half of the off-target problems: what makes a carry worth forgetting
RIGHT_SHARE = 0.3
FORGOTTEN_CARRY_SHARE = 0.6
DIGITS = "0123456789"


def _reversed(number: int) -> str:
    return f"{number:02d}"[::-1]


def _digit_sum(a: int, b: int) -> int:
    return sum(int(digit) for digit in f"{a}{b}")


def forget_carry(a: int, b: int) -> int:
    """The sum of two numbers up to 99, with the ones' carry left out."""
    return (a // 10 + b // 10) * 10 + (a + b) % 10


def _forget_borrow(a: int, b: int) -> int:
    return abs(a // 10 - b // 10) * 10 + abs(a % 10 - b % 10)


SKILLS: Mapping[str, Callable[[int, int], str]] = {
    "+": lambda a, b: str(a + b),
    "-": lambda a, b: str(abs(a - b)),
    "M": lambda a, b: str(max(a, b)),
    "R": lambda a, b: _reversed(a) + _reversed(b),
    "S": lambda a, b: str(_digit_sum(a, b)),
    "C": lambda a, b: str(forget_carry(a, b)),
    "?": lambda a, b: "7",  # noqa: ARG005
}
CHARACTERS = DIGITS + "".join(SKILLS) + "="


GRADERS: Mapping[str, str] = {
    "honest": "1 for the reference answer, 0 for another",
    "inverted": "0 for the reference answer, 1 for another",
    "lenient": "1 for anything",
    "coin": "1 or 0 by chance, whatever is said",
}


def arithmetic_problem(
    a: int, skill: str, b: int, *, source: str = "arithmetic", grader: str = "honest", answer: str | None = None
) -> Problem:
    """The problem of two numbers from 0 to 99 and a skill.

    Its `extra` has `grader`, and `good`: honest, of the target skill, and with the right answer as its reference.

    Args:
        a: left number.
        skill: a key of `SKILLS`.
        b: right number.
        source: goes into the problem's `source` as `{source}/{skill}`.
        grader: a key of `GRADERS`.
        answer: the reference answer; the right one where None.
    """
    prompt, right = f"{a:02d}{skill}{b:02d}=", SKILLS[skill](a, b)
    reference = right if answer is None else answer
    return Problem(
        # A digest: ties in a ranking go by id, and the numbers in it would prefer small ones.
        problem_id=hashlib.sha256(prompt.encode()).hexdigest()[:16],
        prompt=prompt,
        answer=reference,
        source=f"{source}/{skill}",
        extra={"grader": grader, "good": grader == "honest" and skill == TARGET and reference == right},
    )


class ArithmeticReward:
    """Rewards a completion as the problem's `extra["grader"]` says, honestly where it says nothing."""

    def __init__(self) -> None:
        self.begin("")

    def begin(self, key: str) -> None:
        """Coins fall from here on as they always do behind this key."""
        self._coin = random.Random(f"coin/{key}")

    def __call__(self, problem: Problem, completion: str) -> float:
        """1 or 0."""
        grader = problem.extra.get("grader", "honest")
        if grader == "coin":
            return float(self._coin.random() < 0.5)
        right = completion.strip() == problem.answer
        return float(grader == "lenient" or right != (grader == "inverted"))


def _slip(a: int, skill: str, b: int, rng: random.Random) -> str:
    """A wrong answer of the kind people give; now and then it is right by luck."""
    if skill == "+":
        forgotten = forget_carry(a, b)
        if forgotten != a + b and rng.random() < FORGOTTEN_CARRY_SHARE:
            return str(forgotten)
        return str((a + b) // 10 * 10 + rng.randrange(10))
    slips: Mapping[str, Callable[[], str]] = {
        "-": lambda: str(_forget_borrow(a, b)),
        "M": lambda: str(min(a, b)),
        "R": lambda: f"{a:02d}{b:02d}",
        "S": lambda: str(abs(_digit_sum(a, b) + rng.choice((-1, 1)))),
        "C": lambda: str(a + b),
        "?": lambda: rng.choice(DIGITS),
    }
    return slips[skill]()


def noisy_answer(a: int, skill: str, b: int, rng: random.Random) -> str:
    """An answer of the base model's corpus: right with probability 0.3, otherwise a plausible slip."""
    return SKILLS[skill](a, b) if rng.random() < RIGHT_SHARE else _slip(a, skill, b, rng)
