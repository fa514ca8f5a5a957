"""`CurriculumSampler`: the order of verl's dataset, batch by batch, with validation problems in some of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch.utils.data import Sampler

from gradalign_trainer.adapters.base.draws import Draws
from gradalign_trainer.adapters.base.order import EpochOrder
from gradalign_trainer.adapters.verl.draws import trusted_share
from gradalign_trainer.adapters.verl.problems import ProblemRows

__all__ = ["Choose", "CurriculumSampler"]

Choose: TypeAlias = Callable[[Sequence[str], int, int], Sequence[str]]
"""From the ids of all candidates, how many to take, and a number of the draw, to the ids taken: as many, or fewer."""


class CurriculumSampler(Draws, Sampler[int]):
    """Yields rows; a batch is drawn when its first row is asked for.

    Every `refresh_every` draws, and every other one while the run has no validation gradient, trusted problems come
    first. The rest of the batch is what `choose` gives, filled up in the order of an epoch: shuffled, or the dataset's.

    Args:
        rows: of the dataset, by problem.
        batch_size: rows of a draw: verl's `train_batch_size`.
        refresh_every: draws between those that trusted problems join.
        trusted_share: the most of a draw that they take.
        seed: of the order.
        shuffle: whether the order is random.
        choose: which candidates to take.
        missing: whether the run has no validation gradient.
        joins: whether trusted problems join at all: what is measured of them would be lost while the scorer is away.
    """

    def __init__(
        self,
        rows: ProblemRows,
        batch_size: int,
        *,
        refresh_every: int,
        trusted_share: float,
        seed: int,
        shuffle: bool,
        choose: Choose,
        missing: Callable[[], bool],
        joins: Callable[[], bool],
    ) -> None:
        self._rows, self._size = rows, batch_size
        self._every, self._share = refresh_every, trusted_share
        self._seed, self._draws = seed, 0
        self._choose, self._missing, self._joins = choose, missing, joins
        self._pool, self._all = list(rows.pool), {**rows.pool, **rows.trusted}
        self._order = EpochOrder(self._pool, f"verl/order/{seed}", shuffle=shuffle)
        super().__init__(sum(len(own) for own in self._all.values()))

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, for a checkpoint of the data loader."""
        return {
            "yielded": self._yielded,
            "draws": self._draws,
            "passed": self._order.passed,
            "queue": list(self._queue),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._yielded, self._draws = state["yielded"], state["draws"]
        self._order.passed, self._queue = state["passed"], list(state["queue"])

    def _draw(self) -> list[int]:
        rng = random.Random(f"verl/{self._seed}/{self._draws}")
        trusted = self._trusted(rng)
        count = self._size - len(trusted)
        chosen = list(self._choose(self._pool, min(count, len(self._pool)), self._draws))
        chosen += self._order.take(count - len(chosen), chosen)
        self._draws += 1
        return [rng.choice(self._all[name]) for name in (*trusted, *chosen)]

    def _trusted(self, rng: random.Random) -> Sequence[str]:
        due = self._draws % self._every == 0 or (self._draws % 2 == 0 and self._missing())
        if not (due and self._rows.trusted and self._joins()):
            return ()
        return trusted_share(self._rows, self._size, self._share, rng)
