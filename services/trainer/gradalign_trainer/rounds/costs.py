"""What a run has spent so far, as its user pays it: every rollout, whatever it was for, and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PURPOSES", "Costs"]

PURPOSES = ("pool", "validation", "update")
"""What rollouts are for: scoring candidates, the validation gradient, training."""


@dataclass(slots=True)
class Costs:
    """Sums over the rounds of a run; evaluations and checkpoints are not in them.

    Attributes:
        rollouts: purpose -> completions generated for it.
        seconds: of wall time; on a machine with other work, of that too.
        cpu_seconds: of processor time of this process; the scorer's is not in it.
    """

    rollouts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PURPOSES, 0))
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def total_rollouts(self) -> int:
        """Completions generated, for whatever purpose."""
        return sum(self.rollouts.values())

    def figures(self) -> dict[str, float]:
        """For the report of a round: `rollouts` in all and by purpose, `seconds`, `cpu_seconds`."""
        by_purpose = {f"{purpose}_rollouts": float(count) for purpose, count in self.rollouts.items()}
        return {
            "rollouts": float(self.total_rollouts),
            **by_purpose,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }

    def state(self) -> dict[str, float]:
        """As a checkpoint keeps it, JSON numbers by name."""
        return {**self.rollouts, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> Costs:
        """What `state` gave; zeros for what it lacks."""
        rollouts = {purpose: int(state.get(purpose, 0)) for purpose in PURPOSES}
        return cls(rollouts, state.get("seconds", 0.0), state.get("cpu_seconds", 0.0))
