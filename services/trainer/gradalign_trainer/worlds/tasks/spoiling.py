"""Regimes over any tasks: a pool of target problems, spoiled in the ways that real pools are.

Every problem says in `extra["good"]` whether training on it can help the target, and in `extra["grader"]` who marks it;
the reward `graded` reads that. Ids are digests of the prompt: they tell a scorer nothing of the kind.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gradalign_trainer.problems import Problem

__all__ = ["REGIMES", "SHARES", "anonymous", "spoiled"]

REGIMES: Mapping[str, str] = {
    "clean": "target problems with true rewards",
    "inverted": "the rewards of half of the pool are inverted",
    "coin": "half of the pool is rewarded by the flip of a coin",
    "mislabelled": "half of the pool is marked against wrong answers that look right",
    "imbalance": "80% of the pool is of other tasks",
    "low-utility": "85% of the pool is trivial, impossible, rewarded by chance or of other tasks",
}

SHARES: Mapping[str, Mapping[str, float]] = {
    "clean": {},
    "inverted": {"inverted": 0.5},
    "coin": {"coin": 0.5},
    "mislabelled": {"mislabelled": 0.5},
    "imbalance": {"off-target": 0.8},
    "low-utility": {"trivial": 0.25, "impossible": 0.2, "coin": 0.25, "off-target": 0.15},
}
"""Regime -> share of the pool of each kind of bad problem; the rest is good."""

UNREACHABLE = "-98765432109876543210"
"""The reference answer of what is impossible: longer than any completion of a small limit."""


def anonymous(problem: Problem, **extra: object) -> Problem:
    """The same problem with a digest of its prompt as its id, and more in its `extra`."""
    digest = hashlib.sha256(problem.prompt.encode()).hexdigest()[:16]
    return replace(problem, problem_id=digest, extra={**problem.extra, **extra})


def spoiled(
    regime: str, target: Sequence[Problem], off_target: Callable[[int], Sequence[Problem]], rng: random.Random
) -> list[Problem]:
    """The pool of a regime: as many problems as there are of the target, in their order, some of them made bad.

    Args:
        regime: key of `REGIMES`.
        target: good problems; `extra["slip"]` is a wrong answer that looks right, and without it another problem's answer
            is taken.
        off_target: gives so many problems of other tasks, at least one of them.
        rng: what kinds are drawn from.
    """
    shares = SHARES[regime]
    names, weights = [*shares, "good"], [*shares.values(), 1 - sum(shares.values())]
    kinds = rng.choices(names, weights, k=len(target))
    strangers = iter(off_target(kinds.count("off-target")) if "off-target" in kinds else ())
    pool = []
    for place, (problem, kind) in enumerate(zip(target, kinds, strict=True)):
        if kind == "off-target":
            pool.append(_of(next(strangers), "honest", good=False))
        else:
            pool.append(_spoil(problem, kind, target[place - 1].answer))
    return pool


def _spoil(problem: Problem, kind: str, others: str) -> Problem:
    if kind in ("inverted", "coin"):
        return _of(problem, kind, good=False)
    if kind == "trivial":
        return _of(problem, "lenient", good=False)
    if kind == "impossible":
        return _of(replace(problem, answer=UNREACHABLE), "honest", good=False)
    if kind == "mislabelled":
        wrong = str(problem.extra.get("slip", others))
        return _of(replace(problem, answer=wrong), "honest", good=wrong == problem.answer)
    return _of(problem, "honest", good=True)


def _of(problem: Problem, grader: str, *, good: bool) -> Problem:
    return anonymous(problem, grader=grader, good=good)
