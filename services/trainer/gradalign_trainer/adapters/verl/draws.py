"""The rows of a dataset, drawn a batch at a time when the first of it is asked for."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence

from gradalign_trainer.adapters.verl.problems import ProblemRows

__all__ = ["Draws", "trusted_share"]


class Draws:
    """For samplers, which keep `_queue` and `_yielded` in a checkpoint.

    Args:
        length: rows of an epoch.
    """

    def __init__(self, length: int) -> None:
        self._length, self._yielded = length, 0
        self._queue: list[int] = []

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        while self._yielded < self._length:
            if not self._queue:
                self._queue = self._draw()
            self._yielded += 1
            yield self._queue.pop(0)
        self._yielded = 0

    @abstractmethod
    def _draw(self) -> list[int]:
        """The rows of the next batch."""


def trusted_share(rows: ProblemRows, size: int, share: float, rng: random.Random) -> Sequence[str]:
    """The trusted problems that join a draw of `size`: at most that share of it, at least one, and never all of it."""
    most = max(1, min(int(size * share), len(rows.trusted)))
    return rng.sample(list(rows.trusted), min(most, size - 1))
