"""One copy of the policy, which measures batches of groups."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gradalign.wire.projection import Projection
from gradalign_trainer.rank.distributed.shards import Batch, Pooled, Shard
from gradalign_trainer.rank.steps.gradient import Row, encode
from gradalign_trainer.rank.steps.measure import Meter, Taken
from gradalign_trainer.rank.steps.opening import open_policy
from gradalign_trainer.rank.steps.responses import ResponseGroup
from gradalign_trainer.rank.steps.settings import RankSettings
from gradalign_trainer.reporting.progress import no_progress

__all__ = ["Replica"]


class Replica:
    """Takes the gradients of batches as the plain command takes them, to the bit on a like processor.

    Args:
        settings: of the ranking; the device is this replica's.
        threads: of this process on a CPU; bits depend on it.
    """

    def __init__(self, settings: RankSettings, threads: int) -> None:
        torch.set_num_threads(threads)
        self._settings = settings
        self._against: dict[str, Tensor] | None = None

    def start(self) -> Projection:
        """Load the policy; how its sketches are made.

        Raises:
            GradAlignError: it cannot be loaded.
        """
        model, self._tokenizer = open_policy(self._settings)
        self._meter = Meter(model, self._settings)
        return self._meter.sketcher.projection

    def pooled(self, groups: Sequence[ResponseGroup]) -> tuple[Pooled, bytes]:
        """The full gradient of all groups together, as `torch.save` writes it, and what is kept of it.

        Raises:
            GradAlignError: it is zero, or not finite.
        """
        gradient, taken = self._meter.pooled([self._encoded(group)[0] for group in groups], no_progress)
        written = io.BytesIO()
        torch.save({name: part.cpu() for name, part in gradient.items()}, written)
        kept = taken.measurement
        return Pooled(kept.loss, kept.norm, _row(taken)), written.getvalue()

    def hold(self, gradient: bytes) -> None:
        """Take exact products with this full gradient from here on."""
        device = self._meter.model.device
        self._against = torch.load(io.BytesIO(gradient), map_location=device, weights_only=True)

    def measure(self, batch: Batch) -> tuple[Shard, list[str]]:
        """What the groups of a batch give, and why some count as no signal."""
        assert (self._against is not None) == batch.exact, "the validation gradient comes before the batches"
        taken, tokens, cut = [], [], []
        for group, (rows, over), offset in self._placed(batch):
            taken.append(self._meter.group("", group, rows, offset, self._against))
            tokens.append(sum(row.tokens for row in rows))
            cut.append(over)
        self._meter.model.zero_grad(set_to_none=True)
        kept = [each.measurement for each in taken]
        shard = Shard(
            losses=np.array([each.loss for each in kept]),
            dots=np.array([each.dot for each in kept]),
            norms=np.array([each.norm for each in kept]),
            tokens=np.array(tokens),
            cut=np.array(cut),
            sketches=np.stack([_row(each) for each in taken]),
        )
        return shard, [each.fault for each in taken if each.fault]

    def _placed(self, batch: Batch) -> Iterator[tuple[ResponseGroup, tuple[list[Row], int], int]]:
        offset = batch.offset
        for group in batch.groups:
            encoded = self._encoded(group)
            yield group, encoded, offset
            offset += len(encoded[0])

    def _encoded(self, group: ResponseGroup) -> tuple[list[Row], int]:
        settings = self._settings
        return encode(
            group, self._tokenizer, settings.rule, max_length=settings.max_length, normalize=settings.normalize
        )


def _row(taken: Taken) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    row: np.ndarray[tuple[int], np.dtype[np.float32]] = taken.sketch.detach().float().cpu().numpy()
    return row
