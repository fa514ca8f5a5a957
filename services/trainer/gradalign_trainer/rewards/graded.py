"""A reward by graders that may lie, over verifiers that do not: what regimes over any tasks are marked by."""

from __future__ import annotations

import random
from collections.abc import Callable

from gradalign_trainer.problems import Problem, Reward

__all__ = ["GRADERS", "GradedReward"]

GRADERS = ("honest", "inverted", "lenient", "coin")


class GradedReward:
    """Rewards a completion as the problem's `extra["grader"]` says, by the verifier that `extra["verifier"]` names.

    `honest`, or none: the verifier's reward. `inverted`: 1 less that. `lenient`: 1 for anything. `coin`: 1 or 0 by chance.

    Args:
        make: gives the reward of a name; called once for each verifier.
    """

    def __init__(self, make: Callable[[str], Reward]) -> None:
        self._make = make
        self._verifiers: dict[str, Reward] = {}
        self.begin("")

    def begin(self, key: str) -> None:
        """Coins fall from here on as they always do behind this key."""
        self._coin = random.Random(f"coin/{key}")

    def __call__(self, problem: Problem, completion: str) -> float:
        """A reward in [0, 1].

        Raises:
            SettingsError: the verifier is none that there is.
        """
        grader = problem.extra.get("grader", "honest")
        if grader == "coin":
            return float(self._coin.random() < 0.5)
        if grader == "lenient":
            return 1.0
        score = self._verifier(str(problem.extra.get("verifier", "exact")))(problem, completion)
        return 1.0 - score if grader == "inverted" else score

    def _verifier(self, name: str) -> Reward:
        if name not in self._verifiers:
            self._verifiers[name] = self._make(name)
        return self._verifiers[name]
