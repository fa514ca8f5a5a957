"""The conversation of a run with its scorer, in the driver; knows nothing of verl."""

from __future__ import annotations

from collections.abc import Sequence

from gradalign_trainer.adapters.base.link import AdapterLink
from gradalign_trainer.adapters.verl.v1.settings import GradAlignSettings
from gradalign_trainer.fallbacks import UNFIT

__all__ = ["ScorerLink"]


class ScorerLink(AdapterLink):
    """What a run asks of the scorer. It is met at the first request behind `begin`.

    Args:
        settings: of the run.
    """

    order, plainly, run_setting = "plain order", "without weights", "gradalign.run_id"

    def __init__(self, settings: GradAlignSettings) -> None:
        super().__init__(settings, kind="products")

    def unmeasured(self) -> None:
        """The engine holds no validation gradient: nothing is scored until another one is there."""
        self.needs_validation, self._no_validation = True, UNFIT

    def select(self, problem_ids: Sequence[str], count: int, step: int, draw: int) -> Sequence[str]:
        """`count` of the problems by their stored priorities; none where the scorer is away or has scored nothing yet."""
        reply = self._selection(problem_ids, count, step, draw)
        return () if reply is None else reply.selected
