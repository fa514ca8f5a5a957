"""The conversation with the scorer of a training that another trainer runs, on the process that speaks for it.

A scorer that is away costs the batch its weights and its choice, never the run. It is said once, counted, and tried again,
briefly, at every batch (`failopen`).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from gradalign import Client
from gradalign.errors import GradAlignError, NotFound, UnavailableError
from gradalign.wire.projection import Projection
from gradalign.wire.replies import RunState, Selection
from gradalign_trainer.curriculum.curriculum import ScorerAddress
from gradalign_trainer.curriculum.failopen import FailOpen
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
        step: optimizer steps behind the run.
        resumed: whether it goes on from a checkpoint.
    """

    order: str
    """Whose order problems are drawn in while the scorer is away, in words."""

    plainly: str
    """How batches went on without a ranking, in words."""

    run_setting: str
    """The setting that names the run, in words."""

    def __init__(
        self, settings: AdapterSettings, projection: Projection | None, *, step: int = 0, resumed: bool = False
    ) -> None:
        super().__init__(
            projection=projection, strategy=settings.strategy, aggregation=settings.aggregation, wants_validation=True
        )
        self._settings, self._step, self._resumed = settings, step, resumed
        self._client: Client | None = None
        self._probe: Client | None = None

    def reachable(self) -> bool:
        """Whether to spend work on scoring; asks only a scorer not met yet, or one that was away."""
        if self._client is None or self._away:
            self._attempt("health", lambda client: client.health())
        return self._client is not None and not self._away

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
        for client in (self._client, self._probe):
            if client is not None:
                client.close()

    @abstractmethod
    def _take_over(self, client: Client, held: RunState | None) -> None:
        """Hold what the scorer has of the run, None for nothing, to this run's state, or raise GradAlignError.

        Args:
            client: whose epoch has fenced a forgotten predecessor off.
            held: of before.
        """

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


def _held(client: Client) -> RunState | None:
    try:
        return client.run()
    except NotFound:
        return None
