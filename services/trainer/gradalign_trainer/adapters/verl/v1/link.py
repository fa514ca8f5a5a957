"""The conversation of a run with its scorer, in the driver; knows nothing of verl."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from gradalign import Client
from gradalign.errors import GradAlignError, NotFound
from gradalign.wire.replies import Ranking, RunState
from gradalign_trainer.adapters.link import AdapterLink
from gradalign_trainer.adapters.verl.v1.settings import GradAlignSettings
from gradalign_trainer.curriculum.products import MeasuredProducts
from gradalign_trainer.fallbacks import UNFIT

__all__ = ["ScorerLink"]

logger = logging.getLogger(__name__)


class ScorerLink(AdapterLink):
    """What a run asks of the scorer. It is met at the first request behind `begin`.

    Args:
        settings: of the run.
    """

    order, plainly, run_setting = "plain order", "without weights", "gradalign.run_id"

    def __init__(self, settings: GradAlignSettings) -> None:
        super().__init__(settings, None)
        self._snapshot = ""

    def begin(self, step: int, snapshot: str = "") -> None:
        """Meet the scorer.

        Args:
            step: optimizer steps behind the run; above 0 where it goes on from a checkpoint.
            snapshot: name of that checkpoint's curriculum.

        Raises:
            GradAlignError: the scorer is there, and what it holds of this run is not this run's.
        """
        self._step, self._resumed, self._snapshot = step, step > 0, snapshot
        self.reachable()

    @property
    def away(self) -> bool:
        """Whether the last request went without an answer."""
        return self._away

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
        reply = self._selection(problem_ids, count, step, draw)
        return () if reply is None else reply.selected

    def _take_over(self, client: Client, held: RunState | None) -> None:
        if held is not None:
            self._check(self._restored(client, held))

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
        if held.kind == "sketches":
            raise GradAlignError(
                f"the scorer holds sketches of run {self._settings.run_id!r}, and verl 0.9 is aligned by products: a run is "
                "of one kind, since what it remembers of problems is. Take a new gradalign.run_id; the curriculum begins "
                "anew then."
            )
        self._check_version(held)
