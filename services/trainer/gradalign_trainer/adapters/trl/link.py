"""The conversation with the scorer, on the main process of a run.

A scorer that is away costs the batch its weights and its choice, never the run. It is said once, counted, and tried again,
briefly, at every batch (`failopen`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from gradalign import Client
from gradalign.errors import GradAlignError, KindMismatch, NotFound, ProjectionMismatch, UnavailableError
from gradalign.wire.projection import Projection
from gradalign.wire.replies import Ranking, RunState, Selection
from gradalign_trainer.adapters.trl.alignment import CAPTURE, FORWARD, KINDS
from gradalign_trainer.adapters.trl.config import GradAlignConfig
from gradalign_trainer.curriculum.failopen import FailOpen
from gradalign_trainer.curriculum.measured import Gradients
from gradalign_trainer.curriculum.products import MeasuredProducts
from gradalign_trainer.fallbacks import AWAY, Fallbacks
from gradalign_trainer.numerals import counted

__all__ = ["ScorerLink"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ScorerLink(FailOpen):
    """What a run asks of the scorer.

    Args:
        config: of the run.
        projection: of its sketches; None where it cannot have any.
        alignment: `forward` or `capture`; None where the run that the scorer holds decides, and else `capture`.
        step: optimizer steps behind it.
        resumed: whether it goes on from a checkpoint.
        snapshot: name of the curriculum of that checkpoint; None where it has none.
        fallbacks: batches that went on without a ranking before the checkpoint, by why.

    Attributes:
        alignment: as given; decided once the scorer was met.
        validation_version: of the validation gradient that the scorer holds; None where none is known of.
    """

    def __init__(
        self,
        config: GradAlignConfig,
        projection: Projection | None,
        *,
        alignment: str | None,
        step: int,
        resumed: bool,
        snapshot: str | None,
        fallbacks: Fallbacks | None = None,
    ) -> None:
        super().__init__(
            projection=projection, strategy=config.strategy, aggregation=config.aggregation, wants_validation=True
        )
        self._config, self.alignment = config, alignment
        self._step, self._resumed, self._snapshot = step, resumed, snapshot
        self._client: Client | None = None
        self._probe: Client | None = None
        self.validation_version: int | None = None
        self.reasons = Fallbacks() if fallbacks is None else fallbacks

    def reachable(self) -> bool:
        """Whether to spend rollouts and backwards on scoring; asks only a scorer not met yet, or one that was away."""
        if self._client is None or self._away:
            self._attempt("health", lambda client: client.health())
        return self._client is not None and not self._away

    def refresh(self, measured: Gradients, step: int) -> None:
        """Replace the validation gradient; without a signal the one that the scorer holds stays."""
        reply = self._refreshed(measured, step)
        if reply is not None:
            self.validation_version = reply.validation_version

    def unmeasured(self) -> None:
        """No validation gradient could be measured: nothing is scored until another one is.

        Raises:
            GradAlignError: the run is to stop where it cannot be scored.
        """
        if not self._config.fail_open:
            raise GradAlignError(
                "no validation gradient could be measured (the log says why), and GradAlignConfig.fail_open is False."
            )
        super().unmeasured()

    def score(self, measured: Gradients, step: int) -> Ranking | None:
        """The scorer's ranking of a batch; None where it is away or has lost its validation gradient."""
        if isinstance(measured, MeasuredProducts):
            measured = replace(measured, version=self.validation_version)
        return self._ranking(measured, step)

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

    def close(self) -> None:
        """Close the connections; says how many batches went on without a ranking, and why."""
        if self.fallbacks:
            logger.warning("%s.", self.reasons.told("batch", "batches", "went on as plain GRPO"))
        for client in (self._client, self._probe):
            if client is not None:
                client.close()

    def _attempt(self, what: str, request: Callable[[Client], T]) -> T | None:
        try:
            return super()._attempt(what, request)
        except KindMismatch as error:
            raise _other_kind(self._config.run_id, self.alignment) from error
        except ProjectionMismatch as error:
            raise _other_projection(self._config.run_id, str(error)) from error

    def _ready(self) -> Client:
        if self._client is None:
            self._meet()
        client = self._probe if self._away else self._client
        assert client is not None
        return client

    def _lost(self, what: str, error: UnavailableError) -> None:
        if not self._config.fail_open:
            raise error
        logger.warning(
            "The scorer at %s is away (%s). Training goes on without it, with all weights 1 and TRL's own order of "
            "problems, and asks again at every batch; gradalign/fallbacks counts these. %s",
            self._config.scorer_url,
            what,
            error,
        )

    def _found(self) -> None:
        away = counted(self.reasons[AWAY], "batch", "batches")
        logger.warning("The scorer at %s is back after %s.", self._config.scorer_url, away)

    def _meet(self) -> None:
        """Take the run over: restore its curriculum, hold it to this run's state, and fence a forgotten predecessor off."""
        config = self._config
        with config.address(0).connect(config.run_id, probing=self._away) as first:
            held = _held(first)
        address = config.address(1 if held is None else held.epoch + 1)
        client = address.connect(config.run_id)
        try:
            self._settle(held)
            if held is not None:
                self._restore(client, held)
        except BaseException:
            client.close()
            raise
        self._client, self._probe = client, address.connect(config.run_id, probing=True)

    def _settle(self, held: RunState | None) -> None:
        theirs = None if held is None else KINDS.get(held.kind)
        if self.alignment is None:
            self.alignment = theirs or CAPTURE
            logger.info("Aligned by %s (GradAlignConfig.alignment).", self.alignment)
        if theirs not in (None, self.alignment):
            raise _other_kind(self._config.run_id, self.alignment)

    def _restore(self, client: Client, held: RunState) -> None:
        if self._snapshot is not None:
            try:
                client.restore(self._snapshot)
                held = client.run()
            except NotFound as error:
                logger.warning("The curriculum of %s is gone from the scorer: %s", self._snapshot, error)
        elif self._resumed:
            logger.warning("The checkpoint at step %d came without a curriculum; the scorer's goes on.", self._step)
        ours = self._projection
        if held.projection is not None and ours is not None and held.projection["id"] != ours.id:
            raise _other_projection(self._config.run_id, f"it holds {held.projection['id']}, this run makes {ours.id}")
        if held.policy_version > self._step:
            raise _ahead(self._config, held.policy_version, self._step, resumed=self._resumed)
        self.validation_version = held.validation_version or None
        self.needs_validation = self.validation_version is None


def _held(client: Client) -> RunState | None:
    try:
        return client.run()
    except NotFound:
        return None


def _other_kind(run_id: str, alignment: str | None) -> GradAlignError:
    ours, theirs = ("products", "sketches") if alignment == FORWARD else ("sketches", "products")
    return GradAlignError(
        f"the scorer holds {theirs} of run {run_id!r}, and this training sends {ours}: a run is of one kind, since what it "
        f"remembers of problems is. To go on with that run, take GradAlignConfig(alignment={KINDS[theirs]!r}) where this "
        "model and strategy allow it; otherwise take a new run_id, under which the curriculum begins anew."
    )


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
