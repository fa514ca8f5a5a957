"""The conversation of a run with its scorer, in the driver; knows nothing of verl.

A scorer that is away costs a batch its weights and its choice, never the run. It is said once, counted, and tried again,
briefly, at every batch (`failopen`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from gradalign import Client
from gradalign.errors import GradAlignError, NotFound, UnavailableError
from gradalign.wire.replies import Ranking, RunState
from gradalign_trainer.adapters.verl.v1.settings import GradAlignSettings
from gradalign_trainer.curriculum.failopen import FailOpen
from gradalign_trainer.curriculum.products import MeasuredProducts
from gradalign_trainer.fallbacks import AWAY, UNFIT
from gradalign_trainer.numerals import counted

__all__ = ["ScorerLink"]

logger = logging.getLogger(__name__)


class ScorerLink(FailOpen):
    """What a run asks of the scorer. It is met at the first request behind `begin`.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: GradAlignSettings) -> None:
        super().__init__(
            projection=None, strategy=settings.strategy, aggregation=settings.aggregation, wants_validation=True
        )
        self._settings = settings
        self._step, self._snapshot = 0, ""
        self._client: Client | None = None
        self._probe: Client | None = None

    def begin(self, step: int, snapshot: str = "") -> None:
        """Meet the scorer.

        Args:
            step: optimizer steps behind the run; above 0 where it goes on from a checkpoint.
            snapshot: name of that checkpoint's curriculum.

        Raises:
            GradAlignError: the scorer is there, and what it holds of this run is not this run's.
        """
        self._step, self._snapshot = step, snapshot
        self.reachable()

    @property
    def away(self) -> bool:
        """Whether the last request went without an answer."""
        return self._away

    def reachable(self) -> bool:
        """Whether to spend work on scoring; asks only a scorer not met yet, or one that was away."""
        if self._client is None or self._away:
            self._attempt("health", lambda client: client.health())
        return self._client is not None and not self._away

    def refresh(self, measured: MeasuredProducts, step: int) -> None:
        """Replace the validation gradient; without a signal the one that the scorer holds stays."""
        self._refreshed(measured, step)

    def unmeasured(self) -> None:
        """The engine holds no validation gradient: nothing is scored until another one is there."""
        self.needs_validation, self._no_validation = True, UNFIT

    def score(self, measured: MeasuredProducts, step: int) -> Ranking | None:
        """The ranking of a batch; None where the scorer is away, or holds another validation gradient or none."""
        if self.validation is None or self.needs_validation:
            return None
        return self._ranking(replace(measured, version=self.validation.validation_version), step)

    def select(self, problem_ids: Sequence[str], count: int, step: int, draw: int) -> Sequence[str]:
        """`count` of the problems by their stored priorities; none where the scorer is away or has scored nothing yet."""
        settings = self._settings
        if not self.reachable():
            return ()
        try:
            reply = self._attempt(
                "select",
                lambda client: client.select(
                    count,
                    policy_version=step,
                    problem_ids=problem_ids,
                    half_life=settings.half_life,
                    exploration=settings.exploration,
                    cooldown=settings.cooldown,
                    seed=settings.seed + draw,
                ),
            )
        except NotFound:
            return ()
        return () if reply is None else reply.selected

    def close(self) -> None:
        """Close the connections; says how many batches went on without a ranking, and why."""
        if self.fallbacks:
            logger.warning("%s.", self.reasons.told("batch", "batches", "went on without weights"))
        for client in (self._client, self._probe):
            if client is not None:
                client.close()

    def _ready(self) -> Client:
        if self._client is None:
            self._meet()
        client = self._probe if self._away else self._client
        assert client is not None
        return client

    def _lost(self, what: str, error: UnavailableError) -> None:
        logger.warning(
            "The scorer at %s is away (%s). Training goes on without it, with all weights 1 and problems in plain order, "
            "and asks again at every batch; gradalign/fallbacks counts these. %s",
            self._settings.scorer_url,
            what,
            error,
        )

    def _found(self) -> None:
        away = counted(self.reasons[AWAY], "batch", "batches")
        logger.warning("The scorer at %s is back after %s.", self._settings.scorer_url, away)

    def _meet(self) -> None:
        """Take the run over: fence a forgotten predecessor off, and put the curriculum where the checkpoint left it."""
        settings = self._settings
        with settings.address(0).connect(settings.run_id, probing=self._away) as first:
            held = _held(first)
        address = settings.address(1 if held is None else held.epoch + 1)
        client = address.connect(settings.run_id)
        try:
            if held is not None:
                self._check(self._restored(client, held))
        except BaseException:
            client.close()
            raise
        self._client, self._probe = client, address.connect(settings.run_id, probing=True)

    def _restored(self, client: Client, held: RunState) -> RunState:
        if not self._snapshot:
            return held
        try:
            client.restore(self._snapshot)
        except NotFound as error:
            logger.warning(
                "The curriculum of %s is not at the scorer, whose present one goes on: %s", self._snapshot, error
            )
            return held
        return client.run()

    def _check(self, held: RunState) -> None:
        run_id, url = self._settings.run_id, self._settings.scorer_url
        if held.kind == "sketches":
            raise GradAlignError(
                f"the scorer holds sketches of run {run_id!r}, and verl 0.9 is aligned by products: a run is of one kind, "
                "since what it remembers of problems is. Take a new gradalign.run_id; the curriculum begins anew then."
            )
        if held.policy_version > self._step:
            here = f"the checkpoint is at step {self._step}" if self._step else "this training begins at step 0"
            raise GradAlignError(
                f"the scorer's curriculum of run {run_id!r} is at step {held.policy_version}, and {here}: it knows a later "
                "policy than this one. Resume from a checkpoint whose snapshot the scorer still has, take a new "
                f"gradalign.run_id, or forget the old run: gradalign.Client({url!r}, run_id={run_id!r}).delete_run()."
            )


def _held(client: Client) -> RunState | None:
    try:
        return client.run()
    except NotFound:
        return None
