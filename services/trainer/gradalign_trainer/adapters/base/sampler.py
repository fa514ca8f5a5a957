"""`ProblemSampler`: the order of a PyTorch dataset by a `PassRateLink`, for trainers that read one by a data loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Sampler

from gradalign_trainer.adapters.base.draws import Draws
from gradalign_trainer.adapters.base.passrates import PassRateLink

__all__ = ["ProblemSampler"]


class ProblemSampler(Draws, Sampler[int]):
    """Yields rows; a batch is drawn when its first row is asked for, so the loader must not read ahead: `num_workers=0`.

    Args:
        link: that chooses.
        problem_ids: of each row of the dataset; rows of one id take turns.
        batch_size: rows of a draw: the problems that the trainer generates for between two updates.
    """

    def __init__(self, link: PassRateLink, problem_ids: Sequence[str], batch_size: int) -> None:
        super().__init__(len(problem_ids))
        self._link, self._size = link, batch_size
        self._rows: dict[str, list[int]] = {}
        for row, name in enumerate(problem_ids):
            self._rows.setdefault(name, []).append(row)
        self._turn = dict.fromkeys(self._rows, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands in its epoch, for a checkpoint of the data loader; the link keeps its own state."""
        return {"yielded": self._yielded, "queue": list(self._queue)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._yielded, self._queue = state["yielded"], list(state["queue"])

    def _draw(self) -> list[int]:
        return [self._row(name) for name in self._link.next(self._size)]

    def _row(self, name: str) -> int:
        rows = self._rows[name]
        self._turn[name] += 1
        return rows[(self._turn[name] - 1) % len(rows)]
