"""`PassRateLink`: which problems a trainer takes next, by the pass rates that it reports, and by nothing else.

For trainers that let us choose problems, and no more. Before a batch the link says which problems to generate for; behind it
the link is told their rewards. The scorer's strategy is `posterior`: no gradient, no validation problems.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any, Self

from gradalign.wire.messages import DISCOUNT, MAX_PROBLEMS
from gradalign_trainer.adapters.base.figures import batch_figures
from gradalign_trainer.adapters.base.link import AdapterLink
from gradalign_trainer.adapters.base.order import EpochOrder
from gradalign_trainer.curriculum.curriculum import NEVER, ScorerAddress
from gradalign_trainer.curriculum.outcomes import Outcomes
from gradalign_trainer.fallbacks import AWAY, Fallbacks
from gradalign_trainer.settings import SettingsError, check_settings, limits, run_id_fault

__all__ = ["PassRateLink", "PassRateSettings"]

PREFIX = "GRADALIGN_"
EXAMPLES = {"scorer_url": "http://HOST:8000", "run_id": "MY-RUN"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PassRateSettings:
    """How a training uses the scorer. Only the first two have to be given.

    Attributes:
        scorer_url: of the scorer, `http://host:port`.
        run_id: name of the training job at the scorer; a job that resumes keeps it, another one takes another.
        worst_reward: reward of a rollout that failed: a pass rate of 0.
        best_reward: reward of one that succeeded: a pass rate of 1. What lies between counts in part.
        discount: in [0, 1], what earlier rollouts of a problem count for once newer ones come.
        half_life: steps at which the rollouts of a problem that was left alone count half.
        exploration: share of a batch drawn uniformly, in [0, 1]. Beliefs are drawn too, so 0 explores.
        cooldown: steps for which a picked problem rests; take the lag of an asynchronous trainer.
        seed: of the draws, and of the order while the scorer is away.
        timeout: seconds to wait for a reply.
        retries: tries after the first, before a batch goes on without the scorer.

    Raises:
        SettingsError: a value cannot be used; all faults are in it.
    """

    scorer_url: str
    run_id: str = field(metadata=limits(check=run_id_fault))
    worst_reward: float = 0.0
    best_reward: float = 1.0
    discount: float = field(default=DISCOUNT, metadata=limits(low=0, high=1))
    half_life: float = field(default=NEVER, metadata=limits(above=0))
    exploration: float = field(default=0.0, metadata=limits(low=0, high=1))
    cooldown: int = field(default=0, metadata=limits(low=0))
    seed: int = field(default=0, metadata=limits(low=0))
    timeout: float = field(default=10.0, metadata=limits(above=0))
    retries: int = field(default=1, metadata=limits(low=0))

    strategy = "posterior"
    aggregation = "pooled"

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.worst_reward < self.best_reward:
            raise SettingsError(
                [
                    f"worst_reward = {self.worst_reward} is not below best_reward = {self.best_reward}; 0 and 1 are usual."
                ]
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Of `GRADALIGN_SCORER_URL`, `GRADALIGN_RUN_ID` and so on: each field's name in capitals behind `GRADALIGN_`.

        Args:
            environment: that of the process where None.

        Raises:
            SettingsError: one of the first two is missing, or a value cannot be used.
        """
        environment = os.environ if environment is None else environment  # datasets puts a copy there when it filters
        given: dict[str, Any] = {}
        faults = []
        for each in fields(cls):
            name = PREFIX + each.name.upper()
            text = environment.get(name, "")
            kind = {"int": int, "float": float}.get(str(each.type), str)
            if not text and each.name in EXAMPLES:
                faults.append(f"{name} is not set; expected {name}={EXAMPLES[each.name]} in the environment.")
            try:
                given |= {each.name: kind(text)} if text else {}
            except ValueError:
                faults.append(f"{name} = {text!r}; expected a number ({kind.__name__}).")
        if faults:
            raise SettingsError(faults, where="the environment")
        return cls(**given)

    def address(self, epoch: int) -> ScorerAddress:
        """Where the scorer is, for a writer of this fencing token; its key is `GRADALIGN_API_KEY` of the environment."""
        return ScorerAddress(self.scorer_url, None, self.timeout, self.retries, epoch)


class PassRateLink(AdapterLink):
    """Chooses problems by success rates. While the scorer is away they come in the order of an epoch.

    Args:
        settings: of the run.
        problem_ids: distinct ids of all problems, at least one.
        shuffle: whether the order of an epoch is random, or as given.

    Raises:
        SettingsError: there are no problems.
    """

    plainly = "in plain order"

    def __init__(self, settings: PassRateSettings, problem_ids: Sequence[str], *, shuffle: bool = True) -> None:
        super().__init__(settings, kind="pass_rates", wants_validation=False)
        self._rates, self._ids, self._draws = settings, list(dict.fromkeys(problem_ids)), 0
        if not self._ids:
            raise SettingsError(["problem_ids is empty; expected the id of each problem of the dataset."])
        self._epochs = EpochOrder(self._ids, f"passrates/{settings.seed}", shuffle=shuffle)
        self._signal = math.nan

    @property
    def step(self) -> int:
        """Optimizer steps behind the run, as far as it was told. It never goes back but by `load_state_dict`."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = max(self._step, step)

    def next(self, count: int, step: int | None = None) -> list[str]:
        """The problems to generate for next: `count` ids, distinct where there are as many.

        Args:
            count: how many.
            step: optimizer steps behind the run; what was told last where None.

        Raises:
            GradAlignError: the scorer is there, and what it holds of this run is not this run's.
        """
        self.step = step or 0
        picked = self._selection(self._ids, min(count, len(self._ids)), self._step, self._draws)
        if picked is None and self.away:
            self.count_fallback(AWAY)
        self._draws += 1
        chosen = [] if picked is None else list(picked.selected)
        return chosen + self._epochs.take(count - len(chosen), chosen)

    def observe(self, rewards: Mapping[str, Sequence[float]], step: int | None = None) -> None:
        """Tell the scorer how rollouts did; lost where it is away. Send a problem's rollouts of a batch together.

        Args:
            rewards: of the rollouts of each problem, filtered ones too. One that is not finite is left out.
            step: optimizer steps behind the policy that made them; what was told last where None.

        Raises:
            RequestError: the scorer refuses them.
        """
        self.step = step or 0
        finite = {name: [each for each in own if math.isfinite(each)] for name, own in rewards.items()}
        rates = {name: self._rate(own) for name, own in finite.items() if own}
        lost = sum(map(len, rewards.values())) - sum(map(len, finite.values()))
        if lost:
            logger.warning("%d rewards at step %d are not finite, and count for nothing.", lost, self._step)
        if not rates:
            return
        self._signal = fmean(0.0 < rate < 1.0 for rate in rates.values())
        for names in _parts(list(rates)):
            outcomes = Outcomes(names, [rates[name] for name in names], [len(finite[name]) for name in names])
            self._tell(outcomes)

    def figures(self) -> dict[str, float]:
        """What to log, by name: fallbacks, seconds spent on the scorer, and `signal`, the share of groups that had one."""
        return batch_figures(self, None) | {"fallback": float(self.away), "signal": self._signal}

    def state_dict(self) -> dict[str, Any]:
        """The state for the trainer's checkpoint, of plain values; the scorer keeps a snapshot of the curriculum with it."""
        return {
            "snapshot": self.snapshot(f"step-{self._step}"),
            "step": self._step,
            "draws": self._draws,
            "passed": self._epochs.passed,
            "reasons": dict(self.reasons),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave: the scorer puts the snapshot back before it answers the next request."""
        self._draws, self._epochs.passed = state["draws"], state["passed"]
        self.reasons = Fallbacks(state["reasons"])
        self._resume(state["step"], state["snapshot"])

    def _tell(self, outcomes: Outcomes) -> None:
        self._attempt(
            "score",
            lambda client: outcomes.send(client, policy_version=self._step, discount=self._rates.discount),
        )

    def _rate(self, rewards: Sequence[float]) -> float:
        worst, best = self._rates.worst_reward, self._rates.best_reward
        return fmean(min(max((reward - worst) / (best - worst), 0.0), 1.0) for reward in rewards)


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), MAX_PROBLEMS):
        yield names[start : start + MAX_PROBLEMS]
