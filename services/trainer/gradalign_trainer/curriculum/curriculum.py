"""Which problems to train on next: the scorer's choice, or a random one where the scorer is away.

A round without the scorer goes on with a random choice, says so and counts it; the scorer is then asked once a round,
briefly, until it is back (`failopen`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gradalign import Client
from gradalign.errors import NotFound, UnavailableError
from gradalign.wire.projection import Projection
from gradalign.wire.replies import Ranking, RefreshReply
from gradalign_trainer.curriculum.failopen import FailOpen
from gradalign_trainer.curriculum.measured import Gradients
from gradalign_trainer.curriculum.outcomes import Outcomes
from gradalign_trainer.numerals import counted

__all__ = ["Choice", "Curriculum", "ScorerAddress"]

NEVER = 1e12  # policy versions, as a half-life of what does not fade
PROBE_TIMEOUT = 5.0  # seconds; a scorer that hangs must not cost every round its full time limit
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScorerAddress:
    """Where the scorer is and how long to wait for it.

    Attributes:
        url: base URL.
        api_key: bearer token; None for none.
        timeout: seconds to wait for a reply.
        retries: tries after the first.
        epoch: fencing token; higher after each restart of the run.
        sketch_dtype: that sketches travel as, `float32` or `int8`.
    """

    url: str
    api_key: str | None = None
    timeout: float = 30.0
    retries: int = 5
    epoch: int = 0
    sketch_dtype: str = "float32"

    def connect(self, run_id: str, *, probing: bool = False) -> Client:
        """A client of one run; a probing one tries once and does not wait long."""
        return Client(
            self.url,
            run_id=run_id,
            api_key=self.api_key,
            epoch=self.epoch,
            timeout=min(self.timeout, PROBE_TIMEOUT) if probing else self.timeout,
            retries=0 if probing else self.retries,
            sketch_dtype=self.sketch_dtype,
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """What a round trains on.

    Attributes:
        selected: problem ids, best first.
        weights: by problem id, in [0, 1].
        rollout_weights: by problem id, in [0, 1] for each rollout; None where the scorer was not asked.
        ranking: the scorer's reply; None where the choice was made here.
        fallback: the scorer was wanted, and there was no ranking of it.
    """

    selected: Sequence[str]
    weights: dict[str, float] = field(default_factory=dict)
    rollout_weights: dict[str, Sequence[float]] | None = None
    ranking: Ranking | None = None
    fallback: bool = False


class Curriculum(FailOpen):
    """The trainer's side of the scorer.

    Args:
        run_id: of the run.
        scorer: where it is; None chooses at random throughout.
        strategy: the scorer's strategy.
        aggregation: of validation sketches.
        projection: of the sketches; None in a run of products.
        seed: of random choices.
        needs_validation: whether anything can be scored only against a validation gradient.
    """

    def __init__(
        self,
        run_id: str,
        scorer: ScorerAddress | None,
        *,
        strategy: str,
        aggregation: str,
        projection: Projection | None,
        seed: int,
        needs_validation: bool = True,
    ) -> None:
        super().__init__(
            projection=projection,
            strategy=strategy,
            aggregation=aggregation,
            wants_validation=scorer is not None and needs_validation,
        )
        self._client = scorer.connect(run_id) if scorer else None
        self._probe = scorer.connect(run_id, probing=True) if scorer else None
        self._url = scorer.url if scorer else ""
        self._seed = seed
        self._pending_restore: str | None = None

    @property
    def adaptive(self) -> bool:
        """Whether the scorer chooses; otherwise nothing has to be measured."""
        return self._client is not None

    def reachable(self) -> bool:
        """Whether to spend rollouts on scoring. Asks a scorer that was away once more, and restores what is pending."""
        if self.adaptive and (self._away or self._pending_restore):
            self._attempt("health", lambda client: client.health())
        return self.adaptive and not self._away

    def refresh_validation(
        self, measured: Gradients, *, policy_version: int, decay: float | None = None, decay_version: int | None = None
    ) -> RefreshReply | None:
        """Renew the validation gradient; None where the scorer is away, or no validation problem has a signal.

        Without a signal the gradient that the scorer holds, if any, stays.

        Args:
            measured: gradients of validation problems.
            policy_version: that they are of.
            decay: share of the gradient before that is kept; None replaces it.
            decay_version: its version, where the caller keeps it too.

        Raises:
            ValidationMismatch: the scorer holds another than `decay_version`.
        """
        return self._refreshed(measured, policy_version, decay=decay, decay_version=decay_version)

    def propose(
        self,
        problem_ids: Sequence[str],
        features: Tensor,
        count: int,
        *,
        policy_version: int,
        exploration: float,
        cooldown: int,
    ) -> Sequence[str] | None:
        """Which `count` of these problems to generate for next; None where the scorer is away or knows nothing yet.

        Args:
            problem_ids: distinct ids, n of them.
            features: [n, F].
            count: how many.
            policy_version: of the policy.
            exploration: share of them drawn uniformly.
            cooldown: policy versions for which a picked problem rests.
        """
        if self._away or self.needs_validation:
            return None
        try:
            reply = self._attempt(
                "select",
                lambda client: client.select(
                    count,
                    policy_version=policy_version,
                    problem_ids=problem_ids,
                    features=features,
                    exploration=exploration,
                    cooldown=cooldown,
                    seed=self._seed,
                ),
            )
        except NotFound:
            return None
        return None if reply is None else reply.selected

    def choose(self, measured: Gradients, count: int, *, policy_version: int, round_number: int) -> Choice:
        """The best `count` problems of those measured, and every one's weight.

        Where the scorer is away or holds no validation gradient, the choice is random and all weights are 1.
        """
        ranking = self._ranking(measured, policy_version, select=count)
        if ranking is None:
            return self.choose_at_random(measured.problem_ids, count, round_number=round_number)
        weights = dict(zip(ranking.problem_ids, ranking.weights, strict=True))
        each = ranking.rollout_weights
        rollouts: dict[str, Sequence[float]] | None = None
        if each is not None:
            rollouts = dict(zip(ranking.problem_ids, each, strict=True))
        return Choice(selected=ranking.selected, weights=weights, rollout_weights=rollouts, ranking=ranking)

    def pick(
        self, problem_ids: Sequence[str], count: int, *, policy_version: int, half_life: float | None, round_number: int
    ) -> Choice:
        """`count` of these problems by the scorer's beliefs about their success rates, of which it draws once.

        Before anything was observed all beliefs are the same, and the choice is uniform; so it is where the scorer is away.

        Args:
            problem_ids: distinct ids, of which some may never have been observed.
            count: how many.
            policy_version: of the policy.
            half_life: policy versions at which the rollouts of a problem that was left alone count half; None: never.
            round_number: seeds the uniform choice.
        """
        try:
            reply = self._attempt(
                "select",
                lambda client: client.select(
                    count,
                    policy_version=policy_version,
                    problem_ids=problem_ids,
                    strategy="posterior",
                    half_life=NEVER if half_life is None else half_life,
                    exploration=0.0,
                    cooldown=0,
                    seed=self._seed,
                ),
            )
        except NotFound:
            return Choice(selected=self._uniform(problem_ids, count, round_number))
        if reply is None:
            return self.choose_at_random(problem_ids, count, round_number=round_number)
        return Choice(selected=reply.selected)

    def observe(self, outcomes: Outcomes, *, policy_version: int, discount: float) -> None:
        """Tell the scorer how often problems were solved; lost where it is away."""
        self._attempt("score", lambda client: outcomes.send(client, policy_version=policy_version, discount=discount))

    def record(self, measured: Gradients, *, policy_version: int) -> None:
        """Score problems without selecting any, so that the scorer remembers them as they are now."""
        if self.adaptive and not self._away and not self.needs_validation:
            self._ranking(measured.distinct(), policy_version)

    def choose_at_random(self, problem_ids: Sequence[str], count: int, *, round_number: int) -> Choice:
        """A seeded uniform choice; counted as a fallback where the scorer was wanted."""
        if self.adaptive:
            why = self.count_fallback()
            why = f"the scorer at {self._url} is away" if self._away else why
            logger.warning(
                "Round %d chooses at random: %s (%s so far).",
                round_number + 1,
                why,
                counted(self.fallbacks, "such choice"),
            )
        return Choice(
            selected=self._uniform(problem_ids, count, round_number),
            weights=dict.fromkeys(problem_ids, 1.0),
            fallback=self.adaptive,
        )

    def _uniform(self, problem_ids: Sequence[str], count: int, round_number: int) -> list[str]:
        rng = random.Random(f"choice/{self._seed}/{round_number}")
        return rng.sample(list(problem_ids), min(count, len(problem_ids)))

    def snapshot(self, name: str) -> str | None:
        """Keep the curriculum under a name; the name, or None where it could not be kept."""
        return super().snapshot(name) if self.adaptive else None

    def restore_later(self, name: str) -> None:
        """Put the curriculum back to a snapshot before the next request, whenever the scorer is there."""
        self._pending_restore = name

    def close(self) -> None:
        """Close the connections."""
        for client in (self._client, self._probe):
            if client is not None:
                client.close()

    def _ready(self) -> Client:
        client = self._probe if self._away else self._client
        assert client is not None
        self._restore(client)
        return client

    def _lost(self, what: str, error: UnavailableError) -> None:
        logger.warning("The scorer is away, training goes on without it: %s: %s", what, error)

    def _found(self) -> None:
        logger.warning("The scorer at %s is back.", self._url)

    def _restore(self, client: Client) -> None:
        if self._pending_restore is None:
            return
        try:
            client.restore(self._pending_restore)
            self.needs_validation = False
        except NotFound as error:
            logger.warning("The curriculum starts anew: snapshot %s is gone: %s", self._pending_restore, error)
        self._pending_restore = None
