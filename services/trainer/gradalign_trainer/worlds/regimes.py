"""Worlds of arithmetic problems: a pool as a regime spoils it, and trusted and held-out problems of the target skill.

Every problem says in `extra["good"]` whether training on it can help the target: its reward is for the right answer, and
it is of the target skill. Only the oracle and reports look at that. Problem ids are digests and tell a scorer nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from gradalign_trainer.problems import Problem
from gradalign_trainer.world import Parts
from gradalign_trainer.worlds.arithmetic import RIVAL, SKILLS, TARGET, arithmetic_problem, forget_carry

__all__ = ["REGIMES", "UNRELIABLE", "make_world"]

REGIMES: Mapping[str, str] = {
    "clean": "target problems with true rewards",
    "inverted": "the rewards of half of the pool are inverted",
    "misconception": "half of the pool is marked against answers that forget the carry",
    "near-miss": "half of the pool is marked against answers that are off by one",
    "random-number": "half of the pool is marked against random numbers",
    "coin": "half of the pool is rewarded by the flip of a coin",
    "imbalance": "92% of the pool is off-target",
    "low-utility": "85% of the pool is trivial, impossible, rewarded by chance or off-target",
}
UNRELIABLE = ("inverted", "misconception", "near-miss", "random-number", "coin")
"""The regimes whose rewards lie for half of the pool."""

UNRELIABLE_SHARE = 0.5
OFF_TARGET_SHARE = 0.92
OFF_TARGET = [*(skill for skill in SKILLS if skill != TARGET), RIVAL, RIVAL, RIVAL, RIVAL]
LOW_UTILITY_SHARE = 0.85
LOW_UTILITY: Mapping[str, float] = {"trivial": 0.30, "impossible": 0.20, "coin": 0.35, "off-target": 0.15}
"""What problems of low utility are: whatever is said earns the reward, nothing does, chance decides, another skill."""
UNREACHABLE = "000000"  # behind an answer: longer than any completion of the tiny model


def make_world(regime: str, *, seed: int, pool: int = 4096, validation: int = 64, heldout: int = 512) -> Parts:
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
    return Parts(
        pool=[_candidate(regime, a, b, rng) for a, b in asked],
        validation=[arithmetic_problem(a, TARGET, b, source="validation") for a, b in trusted],
        heldout=[arithmetic_problem(a, TARGET, b, source="heldout") for a, b in judged],
    )


def _candidate(regime: str, a: int, b: int, rng: random.Random) -> Problem:
    if regime in UNRELIABLE and rng.random() < UNRELIABLE_SHARE:
        return _SPOILED[regime](a, b, rng)
    if regime == "imbalance" and rng.random() < OFF_TARGET_SHARE:
        return _off_target(a, b, rng)
    if regime == "low-utility" and rng.random() < LOW_UTILITY_SHARE:
        kind = rng.choices([*LOW_UTILITY], [*LOW_UTILITY.values()])[0]
        return _SPOILED[kind](a, b, rng)
    return arithmetic_problem(a, TARGET, b)


def _mislabelled(a: int, b: int, answer: int | str) -> Problem:
    """A sum with another reference answer; good where that happens to be right."""
    return arithmetic_problem(a, TARGET, b, answer=str(answer))


def _off_target(a: int, b: int, rng: random.Random) -> Problem:
    return arithmetic_problem(a, rng.choice(OFF_TARGET), b)


def _random_number(a: int, b: int, rng: random.Random) -> Problem:
    return _mislabelled(a, b, rng.choice([number for number in range(199) if number != a + b]))


_SPOILED: Mapping[str, Callable[[int, int, random.Random], Problem]] = {
    "inverted": lambda a, b, rng: arithmetic_problem(a, TARGET, b, grader="inverted"),  # noqa: ARG005
    "misconception": lambda a, b, rng: _mislabelled(a, b, forget_carry(a, b)),  # noqa: ARG005
    "near-miss": lambda a, b, rng: _mislabelled(a, b, abs(a + b + rng.choice((-1, 1)))),
    "random-number": _random_number,
    "coin": lambda a, b, rng: arithmetic_problem(a, TARGET, b, grader="coin"),  # noqa: ARG005
    "trivial": lambda a, b, rng: arithmetic_problem(a, TARGET, b, grader="lenient"),  # noqa: ARG005
    "impossible": lambda a, b, rng: _mislabelled(a, b, f"{a + b}{UNREACHABLE}"),  # noqa: ARG005
    "off-target": _off_target,
}
