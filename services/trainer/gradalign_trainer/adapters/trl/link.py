"""The conversation with the scorer, on the main process of a run.

Fail-open: a scorer that is away costs the batch its weights and its choice, never the run. It is said once, counted, and
tried again, briefly, at every batch. What the scorer refuses is a fault of the setup and is raised.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from gradalign import Client
from gradalign.errors import (
    GradAlignError,
    NotFound,
    ProjectionMismatch,
    UnavailableError,
    ValidationMismatch,
    ValidationMissing,
)
from gradalign.projection import Projection
from gradalign.replies import Ranking, RefreshReply, RunState, Selection
from gradalign_trainer.adapters.trl.config import GradAlignConfig
from gradalign_trainer.measured import Measured

__all__ = ["ScorerLink"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ScorerLink:
    """What a run asks of the scorer.

    Args:
        config: of the run.
        projection: of its sketches.
        step: optimizer steps behind it.
        resumed: whether it goes on from a checkpoint.
        snapshot: name of the curriculum of that checkpoint; None where it has none.
        fallbacks: counted before the checkpoint.

    Attributes:
        fallbacks: batches that went without the scorer although it was wanted.
        seconds: spent on requests, answered or not.
        validation: the last answer to a refresh.
        needs_validation: a validation gradient has to be sent before anything can be scored.
    """

    def __init__(
        self,
        config: GradAlignConfig,
        projection: Projection,
        *,
        step: int,
        resumed: bool,
        snapshot: str | None,
        fallbacks: int = 0,
    ) -> None:
        self._config, self._projection = config, projection
        self._step, self._resumed, self._snapshot = step, resumed, snapshot
        self._client: Client | None = None
        self._probe: Client | None = None
        self._away = False
        self.fallbacks, self.seconds = fallbacks, 0.0
        self.validation: RefreshReply | None = None
        self.needs_validation = True

    def reachable(self) -> bool:
        """Whether to spend rollouts and backwards on scoring; asks only a scorer not met yet, or one that was away."""
        if self._client is None or self._away:
            self._attempt("health", lambda client: client.health())
        return self._client is not None and not self._away

    def refresh(self, measured: Measured, step: int) -> None:
        """Replace the validation gradient; without a signal the one that the scorer holds stays."""
        if not measured.sketches.any():
            logger.warning(
                "None of the %d validation problems has a signal at step %d: every rollout of each got the same reward. "
                "Take more rollouts (GradAlignConfig.validation_rollouts), or problems that the policy solves sometimes.",
                len(measured.problem_ids),
                step,
            )
            return
        reply = self._attempt(
            "refresh_validation",
            lambda client: measured.refresh(
                client, policy_version=step, projection=self._projection, aggregation=self._config.aggregation
            ),
        )
        if reply is not None:
            self.validation, self.needs_validation = reply, False

    def score(self, measured: Measured, step: int) -> Ranking | None:
        """The scorer's ranking of a batch; None where it is away or has lost its validation gradient."""
        try:
            return self._attempt(
                "score",
                lambda client: measured.score(
                    client, policy_version=step, projection=self._projection, strategy=self._config.strategy
                ),
            )
        except (ValidationMissing, ValidationMismatch) as error:
            logger.warning("The validation gradient will be refreshed: %s", error)
            self.needs_validation = True
            return None

    def select(self, problem_ids: Sequence[str], count: int, step: int, batch: int) -> Selection | None:
        """`count` of the problems by their stored priorities; None where the scorer is away or has scored nothing yet."""
        config = self._config
        if not self.reachable():
            return None
        try:
            return self._attempt(
                "select",
                lambda client: client.select(
                    count,
                    policy_version=step,
                    problem_ids=problem_ids,
                    half_life=config.half_life,
                    exploration=config.exploration,
                    cooldown=config.cooldown,
                    seed=config.seed + batch,
                ),
            )
        except NotFound:
            return None

    def snapshot(self, name: str) -> str | None:
        """Keep the curriculum under a name; the name, or None where it could not be kept."""

        def keep(client: Client) -> str:
            client.snapshot(name)
            return name

        try:
            kept = self._attempt("snapshot", keep)
        except NotFound:
            kept = None
        if kept is None:
            logger.warning("%s has no snapshot of the curriculum: the scorer holds nothing or is away.", name)
        return kept

    def count_fallback(self) -> None:
        """One batch more went without the scorer."""
        self.fallbacks += 1

    def close(self) -> None:
        """Close the connections."""
        for client in (self._client, self._probe):
            if client is not None:
                client.close()

    def _attempt(self, what: str, request: Callable[[Client], T]) -> T | None:
        """The reply, or None where the scorer is away."""
        began = time.monotonic()
        try:
            if self._client is None:
                self._meet()
            client = self._probe if self._away else self._client
            assert client is not None
            reply = request(client)
        except UnavailableError as error:
            if not self._config.fail_open:
                raise
            if not self._away:
                logger.warning(
                    "The scorer at %s is away (%s). Training goes on without it, with all weights 1 and TRL's own order of "
                    "problems, and asks again at every batch; gradalign/fallbacks counts these. %s",
                    self._config.scorer_url,
                    what,
                    error,
                )
            self._away = self.needs_validation = True
            return None
        except ProjectionMismatch as error:
            raise _other_projection(self._config.run_id, str(error)) from error
        finally:
            self.seconds += time.monotonic() - began
        if self._away:
            logger.warning("The scorer at %s is back after %d batches.", self._config.scorer_url, self.fallbacks)
        self._away = False
        return reply

    def _meet(self) -> None:
        """Take the run over: restore its curriculum, hold it to this run's state, and fence a forgotten predecessor off."""
        config = self._config
        with config.address(0).connect(config.run_id, probing=self._away) as first:
            held = _held(first)
        address = config.address(1 if held is None else held.epoch + 1)
        client = address.connect(config.run_id)
        try:
            if held is not None:
                self._restore(client, held)
        except BaseException:
            client.close()
            raise
        self._client, self._probe = client, address.connect(config.run_id, probing=True)

    def _restore(self, client: Client, held: RunState) -> None:
        if self._snapshot is not None:
            try:
                client.restore(self._snapshot)
                held = client.run()
            except NotFound as error:
                logger.warning("The curriculum of %s is gone from the scorer: %s", self._snapshot, error)
        elif self._resumed:
            logger.warning("The checkpoint at step %d came without a curriculum; the scorer's goes on.", self._step)
        if held.projection is not None and held.projection["id"] != self._projection.id:
            raise _other_projection(
                self._config.run_id, f"it holds {held.projection['id']}, this run makes {self._projection.id}"
            )
        if held.policy_version > self._step:
            raise _ahead(self._config, held.policy_version, self._step, resumed=self._resumed)
        self.needs_validation = held.validation_version == 0


def _held(client: Client) -> RunState | None:
    try:
        return client.run()
    except NotFound:
        return None


def _other_projection(run_id: str, what: str) -> GradAlignError:
    return GradAlignError(
        f"the scorer holds sketches of run {run_id!r} that were made in another way ({what}). The trainable parameters have "
        "changed (another LoRA rank or other target_modules, another model, or parameters frozen since), or "
        "GradAlignConfig's dim or seed have. Sketches of the two do not compare: take a new run_id, or undo the change."
    )


def _ahead(config: GradAlignConfig, version: int, step: int, *, resumed: bool) -> GradAlignError:
    here = f"the checkpoint is at step {step}" if resumed else "this training begins at step 0"
    return GradAlignError(
        f"the scorer's curriculum of run {config.run_id!r} is at step {version}, and {here}: it knows a later policy than "
        "this one. Resume from a checkpoint whose snapshot the scorer still has, take a new run_id, or forget the old run: "
        f"gradalign.Client({config.scorer_url!r}, run_id={config.run_id!r}).delete_run()."
    )
