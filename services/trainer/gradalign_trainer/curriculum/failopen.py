"""Requests to a scorer that may be away: a run goes on without their answers.

When the scorer stays away past the client's retries, that is said once, and from then on it is asked briefly until
it is back. A request that the scorer refuses is a fault of the setup and is raised, with one exception: a missing
validation gradient (the store was lost, say) means that the caller has to refresh it.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from gradalign import Client
from gradalign.errors import NotFound, UnavailableError, ValidationMismatch, ValidationMissing
from gradalign.wire.projection import Projection
from gradalign.wire.replies import Ranking, RefreshReply
from gradalign_trainer.curriculum.measured import Gradients
from gradalign_trainer.fallbacks import AWAY, NO_SIGNAL, UNFIT, UNMEASURED, WORDS, Fallbacks

__all__ = ["FailOpen"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


class FailOpen(ABC):
    """What every conversation of a run with its scorer shares.

    Args:
        projection: of the run's sketches; None where it sends products.
        strategy: the scorer's strategy.
        aggregation: of validation sketches.
        wants_validation: whether anything is scored only against a validation gradient.

    Attributes:
        seconds: spent on requests, answered or not.
        validation: the last answer to a refresh.
        wants_validation: as given.
        needs_validation: a validation gradient has to be sent before anything can be scored.
        reasons: rounds or batches that went on without a ranking although one was wanted, by why.
    """

    def __init__(
        self, *, projection: Projection | None, strategy: str, aggregation: str, wants_validation: bool
    ) -> None:
        self._projection, self._strategy, self._aggregation = projection, strategy, aggregation
        self._away = False
        self._no_validation = UNFIT  # why there is no validation gradient, where there is none
        self.seconds = 0.0
        self.reasons = Fallbacks()
        self.validation: RefreshReply | None = None
        self.wants_validation = self.needs_validation = wants_validation

    @property
    def fallbacks(self) -> int:
        """Rounds or batches that went on without a ranking although one was wanted."""
        return self.reasons.total()

    def count_fallback(self, why: str | None = None) -> str:
        """One more went on without a ranking; why, in words.

        Args:
            why: one of `Fallbacks`' reasons; None where it is the scorer's or the validation gradient's.
        """
        why = why or (AWAY if self._away else self._no_validation)
        self.reasons[why] += 1
        return WORDS[why]

    def unmeasured(self) -> None:
        """No products can be had, or none that hold their check: first a new validation gradient has to be sent."""
        self.needs_validation, self._no_validation = self.wants_validation, UNMEASURED

    def snapshot(self, name: str) -> str | None:
        """Keep the curriculum under a name; the name, or None where it could not be kept."""

        def keep(client: Client) -> str:
            client.snapshot(name)
            return name

        try:
            kept = self._attempt("snapshot", keep)
        except NotFound:
            kept = None  # nothing was scored yet
        if kept is None:
            logger.warning("Checkpoint %s has no curriculum snapshot: the scorer holds nothing or is away.", name)
        return kept

    def _refreshed(
        self, measured: Gradients, policy_version: int, *, decay: float | None = None, decay_version: int | None = None
    ) -> RefreshReply | None:
        """The answer to a refresh; None where the scorer is away, or no problem has a signal: what it holds then stays."""
        if not measured.signal:
            if self._no_validation != NO_SIGNAL:
                self._tell_no_signal(measured, policy_version)
            self._no_validation = NO_SIGNAL
            return None
        reply = self._attempt(
            "refresh_validation",
            lambda client: measured.refresh(
                client,
                policy_version=policy_version,
                projection=self._projection,
                aggregation=self._aggregation,
                decay=decay,
                decay_version=decay_version,
            ),
        )
        if reply is not None:
            self.validation, self.needs_validation = reply, False
            self._no_validation = UNFIT
        return reply

    def _tell_no_signal(self, measured: Gradients, policy_version: int) -> None:
        stays = "" if self.needs_validation else " The validation gradient before stays."
        logger.warning(
            "None of the %d validation problems has a signal at policy version %d: every rollout of each got the same "
            "reward.%s Take more rollouts (validation_rollouts), or problems that the policy solves sometimes. This is said "
            "again only after one had a signal.",
            len(measured.problem_ids),
            policy_version,
            stays,
        )

    def _ranking(self, measured: Gradients, policy_version: int, *, select: int | None = None) -> Ranking | None:
        """The scorer's ranking; None where it is away or holds another validation gradient than was measured against."""
        try:
            return self._attempt(
                "score",
                lambda client: measured.score(
                    client,
                    policy_version=policy_version,
                    projection=self._projection,
                    strategy=self._strategy,
                    select=select,
                ),
            )
        except (ValidationMissing, ValidationMismatch) as error:
            logger.warning("The validation gradient will be refreshed: %s", error)
            self.needs_validation = True
            self._no_validation = UNFIT
            return None

    def _attempt(self, what: str, request: Callable[[Client], T]) -> T | None:
        """The reply, or None where the scorer is away."""
        began = time.monotonic()
        try:
            reply = request(self._ready())
        except UnavailableError as error:
            if not self._away:
                self._lost(what, error)
            self._away, self.needs_validation = True, self.wants_validation
            self._no_validation = UNFIT
            return None
        finally:
            self.seconds += time.monotonic() - began
        if self._away:
            self._found()
        self._away = False
        return reply

    @abstractmethod
    def _ready(self) -> Client:
        """The client to ask now, one that tries once and briefly while the scorer is away, with the run put in order."""

    @abstractmethod
    def _lost(self, what: str, error: UnavailableError) -> None:
        """Say that the scorer is away, or raise where that must end the run."""

    @abstractmethod
    def _found(self) -> None:
        """Say that it is back."""
