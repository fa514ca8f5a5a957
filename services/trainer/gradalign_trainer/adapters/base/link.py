"""The conversation with the scorer of a training that another trainer runs, on the process that speaks for it.

`AdapterLink` is the base of all adapters. A scorer that is away costs the batch its weights and its choice, never the run.
It is said once, counted, and tried again, briefly, at every batch (`failopen`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from gradalign import Client
from gradalign.errors import GradAlignError, NotFound, UnavailableError
from gradalign.wire.projection import Projection
from gradalign.wire.replies import Ranking, RefreshReply, RunState, Selection
from gradalign_trainer.curriculum.curriculum import ScorerAddress
from gradalign_trainer.curriculum.failopen import FailOpen
from gradalign_trainer.curriculum.measured import Gradients
from gradalign_trainer.curriculum.products import MeasuredProducts
from gradalign_trainer.fallbacks import AWAY
from gradalign_trainer.numerals import counted

__all__ = ["AdapterLink", "AdapterSettings"]

logger = logging.getLogger(__name__)


class AdapterSettings(Protocol):
    """What an adapter's settings say of the scorer, each under the name that its users know."""

    @property
    def scorer_url(self) -> str: ...  # noqa: D102
    @property
    def run_id(self) -> str: ...  # noqa: D102
    @property
    def strategy(self) -> str: ...  # noqa: D102
    @property
    def aggregation(self) -> str: ...  # noqa: D102
    @property
    def half_life(self) -> float: ...  # noqa: D102
    @property
    def exploration(self) -> float: ...  # noqa: D102
    @property
    def cooldown(self) -> int: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102

    def address(self, epoch: int) -> ScorerAddress:
        """Where the scorer is, for a writer of this fencing token."""


class AdapterLink(FailOpen):
    """What a run asks of the scorer, which is met at the first request.

    Args:
        settings: of the run.
        projection: of its sketches; None where it has none.
        kind: of what it sends, `sketches`, `products` or `pass_rates`, to which what the scorer holds of the run is held;
            None where a subclass sees to that.
        wants_validation: whether anything is scored only against a validation gradient.
        step: optimizer steps behind the run; above 0 where it goes on from a checkpoint.

    Attributes:
        refreshed: step of the last validation gradient that the scorer took; None for none.
    """

    order: str = "the trainer's own order"
    """Whose order problems are drawn in while the scorer is away, in words."""

    plainly: str = "without a ranking"
    """How batches went on without a ranking, in words."""

    run_setting: str = "run_id"
    """The setting that names the run, in words."""

    def __init__(
        self,
        settings: AdapterSettings,
        projection: Projection | None = None,
        *,
        kind: str | None = None,
        wants_validation: bool = True,
        step: int = 0,
    ) -> None:
        super().__init__(
            projection=projection,
            strategy=settings.strategy,
            aggregation=settings.aggregation,
            wants_validation=wants_validation,
        )
        self._settings, self._kind, self._step, self._resumed = settings, kind, step, step > 0
        self._snapshot: str | None = None
        self._client: Client | None = None
        self._probe: Client | None = None
        self.refreshed: int | None = None

    def begin(self, step: int, snapshot: str | None = None) -> None:
        """Meet the scorer, or meet it again from a checkpoint; one that is away is met when it is there.

        Args:
            step: optimizer steps behind the run; above 0 where it goes on from a checkpoint.
            snapshot: name of that checkpoint's curriculum, which is put back; None where it has none.

        Raises:
            GradAlignError: the scorer is there, and what it holds of this run is not this run's.
        """
        self._resume(step, snapshot)
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

    def refresh_due(self, step: int, every: int) -> bool:
        """Whether a validation gradient is due: there is none, or the last one is `every` optimizer steps old."""
        return self.needs_validation or self.refreshed is None or step - self.refreshed >= every

    def refresh(self, measured: Gradients, step: int) -> RefreshReply | None:
        """Replace the validation gradient; None where the scorer is away or no problem has a signal: what it holds stays.

        Args:
            measured: gradients of the validation problems, `Measured` sketches or `MeasuredProducts`.
            step: policy version that they are of.

        Raises:
            RequestError: the scorer refuses them.
        """
        reply = self._refreshed(measured, step)
        if reply is not None:
            self.refreshed = step
        return reply

    def score(self, measured: Gradients, step: int) -> Ranking | None:
        """The ranking of candidates; None where the scorer is away, or holds another validation gradient or none.

        Args:
            measured: their gradients. A version of the validation gradient is put in where they are products.
            step: policy version that they are of.

        Raises:
            RequestError: the scorer refuses them.
        """
        if self.validation is None or self.needs_validation:
            return None
        if isinstance(measured, MeasuredProducts):
            measured = replace(measured, version=self.validation.validation_version)
        return self._ranking(measured, step)

    def _selection(self, problem_ids: Sequence[str], count: int, step: int, draw: int) -> Selection | None:
        """`count` of the problems by their stored priorities; None where the scorer is away or has scored nothing yet."""
        settings = self._settings
        if not self.reachable():
            return None
        try:
            return self._attempt(
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
            return None

    def close(self) -> None:
        """Close the connections; says how many batches went on without a ranking, and why."""
        if self.fallbacks:
            logger.warning("%s.", self.reasons.told("batch", "batches", f"went on {self.plainly}"))
        self._hang_up()

    def _hang_up(self) -> None:
        for client in (self._client, self._probe):
            if client is not None:
                client.close()
        self._client = self._probe = None

    def _resume(self, step: int, snapshot: str | None) -> None:
        self._step, self._resumed, self._snapshot = step, step > 0, snapshot
        self._hang_up()

    def _take_over(self, client: Client, held: RunState | None) -> None:
        """Put the checkpoint's curriculum back, and hold what the scorer has to this run's state, or raise GradAlignError.

        Args:
            client: whose epoch has fenced a forgotten predecessor off.
            held: what the scorer has of the run; None for nothing.
        """
        if held is None:
            return
        held = self._restored(client, held)
        if self._kind not in (None, held.kind):
            raise GradAlignError(
                f"the scorer holds {_words(held.kind)} of run {self._settings.run_id!r}, and this training sends "
                f"{_words(self._kind)}: a run is of one kind, since what it remembers of problems is. Take a new "
                f"{self.run_setting}; the curriculum begins anew then."
            )
        self._check_version(held)

    def _restored(self, client: Client, held: RunState) -> RunState:
        name = self._snapshot
        if not name:
            return held
        try:
            client.restore(name)
        except NotFound as error:
            logger.warning("The curriculum of %s is not at the scorer, whose present one goes on: %s", name, error)
            return held
        return client.run()

    def _ready(self) -> Client:
        if self._client is None:
            self._meet()
        client = self._probe if self._away else self._client
        assert client is not None
        return client

    def _lost(self, what: str, error: UnavailableError) -> None:
        logger.warning(
            "The scorer at %s is away (%s). Training goes on without it, with all weights 1 and problems in %s, "
            "and asks again at every batch; gradalign/fallbacks counts these. %s",
            self._settings.scorer_url,
            what,
            self.order,
            error,
        )

    def _found(self) -> None:
        away = counted(self.reasons[AWAY], "batch", "batches")
        logger.warning("The scorer at %s is back after %s.", self._settings.scorer_url, away)

    def _meet(self) -> None:
        """Take the run over, and fence a forgotten predecessor off."""
        settings = self._settings
        with settings.address(0).connect(settings.run_id, probing=self._away) as first:
            held = _held(first)
        address = settings.address(1 if held is None else held.epoch + 1)
        client = address.connect(settings.run_id)
        try:
            self._take_over(client, held)
        except BaseException:
            client.close()
            raise
        self._client, self._probe = client, address.connect(settings.run_id, probing=True)

    def _check_version(self, held: RunState) -> None:
        """Raise GradAlignError where the scorer knows a later policy than this one."""
        if held.policy_version <= self._step:
            return
        settings = self._settings
        here = f"the checkpoint is at step {self._step}" if self._resumed else "this training begins at step 0"
        raise GradAlignError(
            f"the scorer's curriculum of run {settings.run_id!r} is at step {held.policy_version}, and {here}: it knows a "
            "later policy than this one. Resume from a checkpoint whose snapshot the scorer still has, take a new "
            f"{self.run_setting}, or forget the old run: "
            f"gradalign.Client({settings.scorer_url!r}, run_id={settings.run_id!r}).delete_run()."
        )


def _words(kind: str | None) -> str:
    return "pass rates" if kind == "pass_rates" else str(kind)


def _held(client: Client) -> RunState | None:
    try:
        return client.run()
    except NotFound:
        return None
