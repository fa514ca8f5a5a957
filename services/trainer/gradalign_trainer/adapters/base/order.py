"""The order of an epoch: what a trainer would take where nobody chooses."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

__all__ = ["EpochOrder"]


class EpochOrder:
    """Problems epoch by epoch, each once an epoch.

    Args:
        problem_ids: distinct ids, at least one.
        seed: of the order, which each epoch has anew: a text, or a number.
        shuffle: whether it is random, or as given.

    Attributes:
        passed: problems behind it; all of its state, for a checkpoint.
    """

    def __init__(self, problem_ids: Sequence[str], seed: object, *, shuffle: bool = True) -> None:
        self._ids, self._seed, self._shuffle = list(problem_ids), seed, shuffle
        self._shuffled: tuple[int, Sequence[str]] = (-1, ())
        self.passed = 0

    def take(self, count: int, taken: Collection[str] = ()) -> list[str]:
        """The next `count` that are not taken yet; taken ones too where no others are left."""
        found: list[str] = []
        out = set(taken)
        while len(found) < count:
            name = self._of(self.passed // len(self._ids))[self.passed % len(self._ids)]
            self.passed += 1
            if name not in out or len(out) >= len(self._ids):
                found.append(name)
                out.add(name)
        return found

    def _of(self, epoch: int) -> Sequence[str]:
        if not self._shuffle:
            return self._ids
        if self._shuffled[0] != epoch:
            order = list(self._ids)
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._shuffled = (epoch, order)
        return self._shuffled[1]
