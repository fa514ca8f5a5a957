"""What the rounds of a run share: its policy and its curriculum, rollouts, seeded draws, the validation gradient."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean

from gradalign_trainer.config import TrainConfig
from gradalign_trainer.curriculum import Choice, Curriculum
from gradalign_trainer.policy import Policy
from gradalign_trainer.problems import Problem
from gradalign_trainer.records import Observer, RunData
from gradalign_trainer.rollouts import ScoredRollouts

__all__ = ["Workshop", "scorer_figures"]


class Workshop:
    """Everything that a round works with.

    Args:
        config: of the run.
        data: problems and reward.
        policy: that is trained.
        curriculum: the way to the scorer.
        observer: told of the stages.
        round_number: rounds done.

    Attributes:
        by_id: the pool by problem id.
        validation: the trusted problems that are used.
        round_number: rounds done; the loop counts it up behind each.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: RunData,
        policy: Policy,
        curriculum: Curriculum,
        observer: Observer,
        *,
        round_number: int = 0,
    ) -> None:
        self.config, self.data, self.policy = config, data, policy
        self.curriculum, self.observer, self.round_number = curriculum, observer, round_number
        self.by_id = {problem.problem_id: problem for problem in data.pool}
        self.validation = list(data.validation)[: config.validation_problems]

    def refresh_validation_if_due(self) -> bool:
        """Whether the scorer is there and holds a validation gradient."""
        curriculum = self.curriculum
        if not curriculum.reachable():
            return False
        if curriculum.needs_validation or self.round_number % self.config.refresh_every == 0:
            self.observer.stage("validation", len(self.validation))
            scored = self.rollouts(self.validation, self.config.validation_rollouts, "validation", 0)
            measured = self.policy.measure_validation(scored, self.observer.advance)
            reply = curriculum.refresh_validation(measured, policy_version=self.policy.version)
            if reply is not None:
                self.policy.keep_validation(reply.validation_version)
        return not curriculum.needs_validation

    def rollouts(self, problems: Sequence[Problem], group_size: int, purpose: str, step: int) -> ScoredRollouts:
        """Rollout groups with rewards, drawn from (seed, round, purpose, step)."""
        generator = self.policy.generator(self.round_number, purpose, step)
        return self.policy.rollouts(problems, self.data.reward, group_size, generator)

    def draw(self, count: int) -> list[Problem]:
        """`count` problems of the pool, or all of a smaller one."""
        return self._rng("pool").sample(list(self.data.pool), min(count, len(self.data.pool)))

    def cycled(self, problems: Sequence[Problem], count: int) -> list[Problem]:
        """`count` problems: the whole selection in random order, again and again."""
        rng = self._rng("order")
        order: list[Problem] = []
        while len(order) < count:
            order += rng.sample(list(problems), len(problems))
        return order[:count]

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.config.seed}/{self.round_number}/{purpose}")


def scorer_figures(curriculum: Curriculum, choice: Choice) -> dict[str, float]:
    """What the scorer said of a choice; nothing where the run needs none."""
    if not curriculum.adaptive:
        return {}
    figures: dict[str, float] = {"fallback": float(choice.fallback), "fallbacks": float(curriculum.fallbacks)}
    if curriculum.validation is not None:
        figures["coherence"] = curriculum.validation.coherence
    ranking = choice.ranking
    if ranking is not None:
        figures["scored"] = float(len(ranking.problem_ids))
        figures["no_signal"] = float(len(ranking.no_signal))
        if ranking.reliability is not None:
            figures["reliability"] = ranking.reliability
        if ranking.alignments:
            by_id = dict(zip(ranking.problem_ids, ranking.alignments, strict=True))
            figures["alignment"] = fmean(ranking.alignments)
            figures["selected_alignment"] = fmean(by_id[problem_id] for problem_id in ranking.selected)
    return figures
