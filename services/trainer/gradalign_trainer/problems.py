"""What a run trains on: problems, and rewards of their completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

__all__ = ["ChanceReward", "Problem", "Reward"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One training item.

    Attributes:
        problem_id: distinct within a run, 1 to 256 characters.
        prompt: what the model is given, text.
        answer: what it should say; what that means is the reward's affair.
        source: where the problem comes from; for reports.
        extra: what else the reward needs.
    """

    problem_id: str
    prompt: str
    answer: str
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


Reward: TypeAlias = Callable[[Problem, str], float]
"""(problem, completion text) -> reward in [0, 1]."""


@runtime_checkable
class ChanceReward(Protocol):
    """A reward with chance in it, which a run tells where it is, so that a resumed run draws what an unbroken one would."""

    def begin(self, key: str) -> None:
        """The next completions are those of this place in the run."""

    def __call__(self, problem: Problem, completion: str) -> float:
        """A reward in [0, 1]."""
