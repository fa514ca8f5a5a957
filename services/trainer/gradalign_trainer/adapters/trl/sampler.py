"""RepeatSampler whose generation batches are proposed by the curriculum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from trl.trainer.utils import RepeatSampler

__all__ = ["CurriculumSampler"]


class CurriculumSampler(RepeatSampler):
    """Yields what RepeatSampler would, with each generation batch's problems replaced by chosen ones.

    The order within a batch is RepeatSampler's (every index `mini_repeat_count` times in a row, the whole
    `repeat_count` times), so that groups stay whole over the processes. All processes must iterate in step.

    Args:
        choose: given the problems that RepeatSampler would take, as indices; as many indices to take instead.
        passed: how many generation batches of this epoch a resumed run has behind it: they are drawn only to be skipped.
        settings: RepeatSampler's.
    """

    def __init__(
        self, *, choose: Callable[[Sequence[int]], Sequence[int]], passed: Callable[[], int], **settings: Any
    ) -> None:
        super().__init__(**settings)
        self._choose, self._passed = choose, passed

    def __iter__(self) -> Iterator[int]:
        order: list[int] = list(range(self.num_samples))
        if self.shuffle:
            order = torch.randperm(self.num_samples, generator=self.generator).tolist()
        passed = self._passed()
        for number in range(self.num_samples // self.batch_size):
            proposed = order[number * self.batch_size : (number + 1) * self.batch_size]
            taken = proposed if number < passed else self._choose(proposed)
            for _ in range(self.repeat_count):
                for index in taken:
                    yield from [index] * self.mini_repeat_count
