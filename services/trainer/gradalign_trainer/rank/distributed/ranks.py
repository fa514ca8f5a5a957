"""Workers as the ranks of torchrun: each takes its part of the batches, rank 0 does what is done once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
from torch import distributed

from gradalign.wire.projection import Projection
from gradalign_trainer.rank.distributed.replica import Replica
from gradalign_trainer.rank.distributed.shards import Batch, Pooled, Shard
from gradalign_trainer.rank.steps.responses import ResponseGroup
from gradalign_trainer.rank.steps.settings import RankSettings

__all__ = ["Ranks", "by_torchrun"]

LONGEST_WAIT = timedelta(days=14)  # of a rank for the slowest one; a rank that died is noticed at once


def by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return distributed.is_torchelastic_launched()


class Ranks:
    """This rank among the others, as a context manager; it measures by a copy of the policy of its own.

    Args:
        settings: of the ranking.
        threads: of this rank on a CPU.

    Attributes:
        rank: of this process.
        count: of ranks.
        restarted: whether torchrun began all ranks anew after one died.
    """

    def __init__(self, settings: RankSettings, threads: int) -> None:
        self.rank, self.count = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        self.restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        here = int(os.environ["LOCAL_RANK"])
        on_gpu = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
        self._replica = Replica(replace(settings, device=f"cuda:{here}") if on_gpu else settings, threads)

    def __enter__(self) -> Self:
        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.meet()
        distributed.destroy_process_group()

    def meet(self) -> None:
        """Wait until all ranks are here."""
        distributed.barrier()

    def share(self, numbers: Sequence[int] | None) -> Sequence[int]:
        """Every so manieth of what rank 0 gives."""
        given: list[Any] = [numbers]
        distributed.broadcast_object_list(given, src=0)
        part: Sequence[int] = given[0][self.rank :: self.count]
        return part

    def release(self) -> None:
        """The policy stays until the end of the process."""

    def projection(self) -> Projection:
        """Load the policy; how sketches are made."""
        return self._replica.start()

    def pooled(self, groups: Sequence[ResponseGroup]) -> tuple[Pooled, bytes]:
        """What is kept of the full gradient of all groups together, and that gradient as bytes."""
        return self._replica.pooled(groups)

    def hold(self, gradient: bytes) -> None:
        """Take exact products with this full gradient from here on."""
        self._replica.hold(gradient)

    def measure(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Shard, list[str]]]:
        """What batches give, one after the other."""
        for batch in batches:
            yield batch, *self._replica.measure(batch)
