"""The conversation with the scorer, on the main process of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from gradalign import Client
from gradalign.errors import GradAlignError, KindMismatch, ProjectionMismatch, UnavailableError
from gradalign.wire.projection import Projection
from gradalign.wire.replies import Ranking, RunState, Selection
from gradalign_trainer.adapters.base.link import AdapterLink
from gradalign_trainer.adapters.trl.alignment import CAPTURE, FORWARD, KINDS
from gradalign_trainer.adapters.trl.config import GradAlignConfig
from gradalign_trainer.curriculum.measured import Gradients
from gradalign_trainer.curriculum.products import MeasuredProducts
from gradalign_trainer.fallbacks import Fallbacks

__all__ = ["ScorerLink"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ScorerLink(AdapterLink):
    """What a run asks of the scorer.

    Args:
        config: of the run.
        projection: of its sketches; None where it cannot have any.
        alignment: `forward` or `capture`; None where the run that the scorer holds decides, and else `capture`.
        step: optimizer steps behind it; above 0 where it goes on from a checkpoint.
        snapshot: name of the curriculum of that checkpoint; None where it has none.
        fallbacks: batches that went on without a ranking before the checkpoint, by why.

    Attributes:
        alignment: as given; decided once the scorer was met.
        validation_version: of the validation gradient that the scorer holds; None where none is known of.
    """

    order, plainly, run_setting = "TRL's own order", "as plain GRPO", "run_id"

    def __init__(
        self,
        config: GradAlignConfig,
        projection: Projection | None,
        *,
        alignment: str | None,
        step: int,
        snapshot: str | None,
        fallbacks: Fallbacks | None = None,
    ) -> None:
        super().__init__(config, projection, step=step)
        self._config, self.alignment, self._snapshot = config, alignment, snapshot
        self.validation_version: int | None = None
        self.reasons = Fallbacks() if fallbacks is None else fallbacks

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
        return self._selection(problem_ids, count, step, batch)

    def _attempt(self, what: str, request: Callable[[Client], T]) -> T | None:
        try:
            return super()._attempt(what, request)
        except KindMismatch as error:
            raise _other_kind(self._config.run_id, self.alignment) from error
        except ProjectionMismatch as error:
            raise _other_projection(self._config.run_id, str(error)) from error

    def _lost(self, what: str, error: UnavailableError) -> None:
        if not self._config.fail_open:
            raise error
        super()._lost(what, error)

    def _take_over(self, client: Client, held: RunState | None) -> None:
        self._settle(held)
        if held is not None:
            self._restore(client, held)

    def _settle(self, held: RunState | None) -> None:
        theirs = None if held is None else KINDS.get(held.kind)
        if self.alignment is None:
            self.alignment = theirs or CAPTURE
            logger.info("Aligned by %s (GradAlignConfig.alignment).", self.alignment)
        if theirs not in (None, self.alignment):
            raise _other_kind(self._config.run_id, self.alignment)

    def _restore(self, client: Client, held: RunState) -> None:
        held = self._restored(client, held)
        if self._snapshot is None and self._resumed:
            logger.warning("The checkpoint at step %d came without a curriculum; the scorer's goes on.", self._step)
        ours = self._projection
        if held.projection is not None and ours is not None and held.projection["id"] != ours.id:
            raise _other_projection(self._config.run_id, f"it holds {held.projection['id']}, this run makes {ours.id}")
        self._check_version(held)
        self.validation_version = held.validation_version or None
        self.needs_validation = self.validation_version is None


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
