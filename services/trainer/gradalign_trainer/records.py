"""What goes into a run and what it tells the outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gradalign_trainer.fallbacks import Fallbacks
from gradalign_trainer.problems import Problem, Reward

__all__ = ["Observer", "RoundReport", "RunData", "RunResult"]


@dataclass(frozen=True, slots=True)
class RunData:
    """What a run trains on and is judged by.

    Attributes:
        pool: candidates, with distinct ids.
        validation: trusted problems.
        heldout: problems to evaluate on.
        reward: of a completion, in [0, 1].
    """

    pool: Sequence[Problem]
    validation: Sequence[Problem]
    heldout: Sequence[Problem]
    reward: Reward


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One round, for logs and plots.

    Attributes:
        round_number: rounds done, from 1; 0 for the evaluation before the first.
        policy_version: optimizer steps done.
        pass_rate: mean held-out pass rate in [0, 1]; None where it was not evaluated.
        figures: what was measured of training and scorer; each present where it applies.
    """

    round_number: int
    policy_version: int
    pass_rate: float | None
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        reports: of the rounds played now, oldest first.
        reasons: rounds that chose at random although the scorer was to choose, by why, over the whole run.
        checkpoint: the last one written.
    """

    reports: Sequence[RoundReport]
    reasons: Fallbacks
    checkpoint: Path

    @property
    def fallbacks(self) -> int:
        """Rounds that chose at random although the scorer was to choose."""
        return self.reasons.total()


class Observer(Protocol):
    """Follows a run while it goes: progress bars, metrics, plots."""

    def stage(self, name: str, total: int) -> None:
        """A stage of the round begins, of so many problems or updates."""

    def advance(self, amount: int = 1) -> None:
        """So many more of the stage are done."""

    def report(self, report: RoundReport) -> None:
        """A round is over."""
