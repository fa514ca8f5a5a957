"""What the rounds of a run share: its policy and its curriculum, rollouts, seeded draws, the validation gradient."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from gradalign.errors import DirectionError, GradAlignError, ValidationMismatch
from gradalign.wire.replies import Ranking
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.curriculum.curriculum import Choice, Curriculum
from gradalign_trainer.curriculum.measured import Gradients
from gradalign_trainer.grpo.features import PoolFeatures
from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.policy.policy import Policy
from gradalign_trainer.problems import ChanceReward, Problem
from gradalign_trainer.records import Observer, RunData
from gradalign_trainer.rounds.costs import Costs

__all__ = ["Workshop", "good_share", "scorer_figures"]

logger = logging.getLogger(__name__)


class Workshop:
    """Everything that a round works with.

    Args:
        config: of the run.
        data: problems and reward.
        policy: that is trained.
        curriculum: the way to the scorer.
        observer: told of the stages.
        round_number: rounds done.
        costs: of them.
        features: of the pool; None where there are no proposals.

    Attributes:
        by_id: the pool by problem id.
        candidates: problems of the pool that may be drawn; the good ones alone for the oracle.
        validation: the trusted problems that are used.
        round_number: rounds done; the loop counts it up behind each.
        costs: of the run so far; the loop adds the times.
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
        costs: Costs | None = None,
        features: PoolFeatures | None = None,
    ) -> None:
        self.config, self.data, self.policy = config, data, policy
        self.curriculum, self.observer, self.round_number = curriculum, observer, round_number
        self.costs = costs or Costs()
        self.features = features
        self.by_id = {problem.problem_id: problem for problem in data.pool}
        self.candidates = _candidates(config, data.pool)
        self.validation = list(data.validation)[: config.validation_problems]

    def refresh_validation_if_due(self) -> bool:
        """Whether the scorer is there, and holds a validation gradient where one is wanted."""
        curriculum = self.curriculum
        if not curriculum.reachable():
            return False
        if not curriculum.wants_validation:
            return True
        if curriculum.needs_validation or self.round_number % self.config.refresh_every == 0:
            problems = self._validation_now()
            self.observer.stage("validation", len(problems))
            scored = self.rollouts(problems, self.config.validation_rollouts, "validation", 0)
            measured = self.measured(lambda: self.policy.meter.validation(scored, self.observer.advance))
            if measured is not None:
                self._send_validation(measured)
        return not curriculum.needs_validation

    def measured(self, measure: Callable[[], Gradients]) -> Gradients | None:
        """What the meter finds; None where no products can be taken, or none that hold their self-check.

        Then no validation gradient is held any more: the round goes on without a ranking, and the next takes a new one.
        """
        try:
            return measure()
        except DirectionError as error:
            self.unmeasured(error)
            return None

    def unmeasured(self, error: DirectionError) -> None:
        """Say that there are no products, and that the next round takes a new validation gradient."""
        logger.warning("No products can be taken along the validation gradient, which is taken anew: %s", error)
        self.curriculum.unmeasured()

    def _validation_now(self) -> list[Problem]:
        """The trusted problems whose turn it is."""
        count = min(self.config.validation_subset or len(self.validation), len(self.validation))
        start = self.round_number // self.config.refresh_every * count
        return [self.validation[(start + place) % len(self.validation)] for place in range(count)]

    def _send_validation(self, measured: Gradients) -> None:
        meter, version = self.policy.meter, self.policy.version
        decay: float | None = self.config.validation_decay or None
        if self.config.alignment == "exact" and meter.kept_version is None:
            decay = None  # nothing is kept here that the scorer's could go on from
        try:
            held = meter.kept_version if decay else None
            reply = self.curriculum.refresh_validation(
                measured, policy_version=version, decay=decay, decay_version=held
            )
        except ValidationMismatch as error:
            logger.warning("The validation gradient begins anew: %s", error)
            decay = None
            reply = self.curriculum.refresh_validation(measured, policy_version=version)
        if reply is not None:
            meter.keep(reply.validation_version, decay)

    def proposed(self, count: int, step: int) -> list[Problem]:
        """`count` problems that the scorer proposes for a batch; drawn uniformly where it is away or knows nothing yet."""
        config, rng = self.config, self._rng(f"proposals/{step}")
        shown = rng.sample(self.candidates, min(max(config.proposal_pool, count), len(self.candidates)))
        assert self.features is not None
        ids = [problem.problem_id for problem in shown]
        picked = self.curriculum.propose(
            ids,
            self.features.rows(ids),
            count,
            policy_version=self.policy.version,
            exploration=config.proposal_exploration,
            cooldown=config.proposal_cooldown,
        )
        return shown[:count] if picked is None else [self.by_id[problem_id] for problem_id in picked]

    def rollouts(self, problems: Sequence[Problem], group_size: int, purpose: str, step: object) -> ScoredRollouts:
        """Rollout groups with rewards, drawn from (seed, round, purpose, step); `purpose` is one of `PURPOSES`."""
        generator = self.policy.generator(self.round_number, purpose, step)
        if isinstance(self.data.reward, ChanceReward):
            self.data.reward.begin(f"{self.config.seed}/{self.round_number}/{purpose}/{step}")
        self.costs.rollouts[purpose] += len(problems) * group_size
        return self.policy.rollouts(problems, self.data.reward, group_size, generator)

    def draw(self, count: int) -> list[Problem]:
        """`count` of the candidates, or all of fewer."""
        return self._rng("pool").sample(self.candidates, min(count, len(self.candidates)))

    def trusted(self, count: int, step: int) -> list[Problem]:
        """`count` of the trusted problems, drawn anew at each step."""
        return self._rng(f"trusted/{step}").sample(self.validation, min(count, len(self.validation)))

    def cycled(self, problems: Sequence[Problem], count: int) -> list[Problem]:
        """`count` problems: the whole selection in random order, again and again."""
        rng = self._rng("order")
        order: list[Problem] = []
        while len(order) < count:
            order += rng.sample(list(problems), len(problems))
        return order[:count]

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.config.seed}/{self.round_number}/{purpose}")


def _candidates(config: TrainConfig, pool: Sequence[Problem]) -> list[Problem]:
    if config.strategy != "oracle":
        return list(pool)
    good = [problem for problem in pool if problem.extra.get("good")]
    if not good:
        raise GradAlignError(
            f"strategy = 'oracle' takes problems whose extra has good = true, and none of the {len(pool)} problems of the "
            "pool has it. Use a pool of the built-in worlds (arithmetic:imbalance/pool), or another strategy."
        )
    return good


def good_share(trained: Sequence[Problem]) -> dict[str, float]:
    """The share of good problems among those trained on, where the problems say what they are."""
    told = [bool(problem.extra["good"]) for problem in trained if "good" in problem.extra]
    return {"trained_good": fmean(told)} if told else {}


def kind_alignments(pool: Mapping[str, Problem], ranking: Ranking) -> dict[str, float]:
    """Mean alignments of good problems and of bad ones, where the pool says what they are."""
    found: dict[str, list[float]] = {"alignment_good": [], "alignment_bad": []}
    for problem_id, alignment in zip(ranking.problem_ids, ranking.alignments or (), strict=False):
        extra = pool[problem_id].extra if problem_id in pool else {}
        if "good" in extra:
            found["alignment_good" if extra["good"] else "alignment_bad"].append(alignment)
    return {name: fmean(values) for name, values in found.items() if values}


def scorer_figures(curriculum: Curriculum, choice: Choice) -> dict[str, float]:
    """What the scorer said of a choice; nothing where the run needs none."""
    if not curriculum.adaptive:
        return {}
    figures: dict[str, float] = {"fallback": float(choice.fallback), **curriculum.reasons.figures()}
    if curriculum.validation is not None and curriculum.validation.coherence is not None:
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
