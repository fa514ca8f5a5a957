"""The built-in arithmetic world: problems, slips, unreliable rewards and lopsided pools, with no download.

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

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gradalign_trainer.problems import Problem

__all__ = [
    "CHARACTERS",
    "REGIMES",
    "SKILLS",
    "TARGET",
    "World",
    "arithmetic_problem",
    "arithmetic_reward",
    "make_world",
    "noisy_answer",
]

TARGET = "+"
RIGHT_SHARE = 0.3
FORGOTTEN_CARRY_SHARE = 0.6
DIGITS = "0123456789"


def _reversed(number: int) -> str:
    return f"{number:02d}"[::-1]


def _digit_sum(a: int, b: int) -> int:
    return sum(int(digit) for digit in f"{a}{b}")


def _forget_carry(a: int, b: int) -> int:
    return (a // 10 + b // 10) * 10 + (a + b) % 10


def _forget_borrow(a: int, b: int) -> int:
    return abs(a // 10 - b // 10) * 10 + abs(a % 10 - b % 10)


SKILLS: Mapping[str, Callable[[int, int], str]] = {
    "+": lambda a, b: str(a + b),
    "-": lambda a, b: str(abs(a - b)),
    "M": lambda a, b: str(max(a, b)),
    "R": lambda a, b: _reversed(a) + _reversed(b),
    "S": lambda a, b: str(_digit_sum(a, b)),
    "C": lambda a, b: str(_forget_carry(a, b)),
    "?": lambda a, b: "7",  # noqa: ARG005
}
CHARACTERS = DIGITS + "".join(SKILLS) + "="


def arithmetic_problem(a: int, skill: str, b: int, *, source: str = "arithmetic", inverted: bool = False) -> Problem:
    """The problem of two numbers from 0 to 99 and a skill.

    Args:
        a: left number.
        skill: a key of `SKILLS`.
        b: right number.
        source: goes into the problem's `source` as `{source}/{skill}`.
        inverted: whether its reward lies (see `arithmetic_reward`).
    """
    prompt = f"{a:02d}{skill}{b:02d}="
    return Problem(
        problem_id=f"{prompt[:-1]}{'!' if inverted else ''}",
        prompt=prompt,
        answer=SKILLS[skill](a, b),
        source=f"{source}/{skill}",
        extra={"inverted": inverted},
    )


def arithmetic_reward(problem: Problem, completion: str) -> float:
    """1 for the right answer and 0 for another; the reverse where the problem is marked `inverted`."""
    right = completion.strip() == problem.answer
    return float(right != bool(problem.extra.get("inverted")))


def _slip(a: int, skill: str, b: int, rng: random.Random) -> str:
    """A wrong answer of the kind people give; now and then it is right by luck."""
    if skill == "+":
        forgotten = _forget_carry(a, b)
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


@dataclass(frozen=True, slots=True)
class World:
    """The problems of one run; no `+` question is in two of the three parts.

    Attributes:
        pool: candidates to train on, rewards as the regime has them.
        validation: small and trusted, all of the target skill.
        heldout: what the run is judged by, all of the target skill.
    """

    pool: Sequence[Problem]
    validation: Sequence[Problem]
    heldout: Sequence[Problem]


REGIMES: Mapping[str, str] = {
    "clean": "target problems with true rewards",
    "inverted": "the rewards of half of the pool are inverted",
    "imbalance": "92% of the pool is off-target",
}
OFF_TARGET_SHARE = 0.92
RIVAL = "C"  # half of the off-target problems: what makes a carry worth forgetting
INVERTED_SHARE = 0.5


def make_world(regime: str, *, seed: int, pool: int = 4096, validation: int = 64, heldout: int = 512) -> World:
    """Draw the problems of a run.

    Args:
        regime: a key of `REGIMES`.
        seed: same seed, same world.
        pool: number of candidates.
        validation: number of trusted problems.
        heldout: number of problems to evaluate on.

    Raises:
        ValueError: unknown regime, or more target problems asked for than the 10,000 that exist.
    """
    if regime not in REGIMES:
        raise ValueError(f"regime is {regime!r}; expected one of {', '.join(REGIMES)}.")
    if min(pool, validation, heldout) < 1 or pool + validation + heldout > 10_000:
        raise ValueError(
            f"pool {pool}, validation {validation} and heldout {heldout} must be at least 1 each and sum to at most "
            f"10000, the number of pairs of two-digit numbers; ask for fewer."
        )
    rng = random.Random(f"arithmetic/{seed}")
    pairs = [divmod(index, 100) for index in rng.sample(range(10_000), pool + validation + heldout)]
    asked, trusted, judged = pairs[:pool], pairs[pool : pool + validation], pairs[pool + validation :]
    off_target = [*(skill for skill in SKILLS if skill != TARGET), RIVAL, RIVAL, RIVAL, RIVAL]

    def candidate(a: int, b: int) -> Problem:
        lies = regime == "inverted" and rng.random() < INVERTED_SHARE
        strays = regime == "imbalance" and rng.random() < OFF_TARGET_SHARE
        return arithmetic_problem(a, rng.choice(off_target) if strays else TARGET, b, inverted=lies)

    return World(
        pool=[candidate(a, b) for a, b in asked],
        validation=[arithmetic_problem(a, TARGET, b, source="validation") for a, b in trusted],
        heldout=[arithmetic_problem(a, TARGET, b, source="heldout") for a, b in judged],
    )
