"""The rows of a dataset, drawn a batch at a time when the first of it is asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

__all__ = ["Draws"]


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
