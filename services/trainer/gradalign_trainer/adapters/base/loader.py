"""`CurriculumLoader`: a data loader of problems that a `PassRateLink` chooses, for trainers that checkpoint theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader

from gradalign_trainer.adapters.base.passrates import PassRateLink
from gradalign_trainer.adapters.base.sampler import ProblemSampler

__all__ = ["CurriculumLoader"]

KEY = "gradalign"
logger = logging.getLogger(__name__)


class CurriculumLoader(StatefulDataLoader):  # type: ignore[misc]  # torchdata is there where a trainer brings it
    """Batches of chosen rows, read when they are asked for. Its state has the link's in it.

    Args:
        link: that chooses.
        problem_ids: of each row of the dataset.
        dataset: with a row for each of them.
        batch_size: rows of a batch, and of a draw.
        collate_fn: makes a batch of a list of rows; a list where None.
    """

    def __init__(
        self,
        link: PassRateLink,
        problem_ids: Sequence[str],
        dataset: Any,
        batch_size: int,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        sampler = ProblemSampler(link, problem_ids, batch_size)
        super().__init__(
            dataset, batch_size=batch_size, sampler=sampler, drop_last=True, collate_fn=collate_fn or _as_list
        )
        self.link = link

    def state_dict(self) -> dict[str, Any]:
        """The loader's state and the link's, for a checkpoint; the scorer keeps a snapshot of the curriculum with it."""
        return {**super().state_dict(), KEY: self.link.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; from a checkpoint of another loader in an order that begins anew."""
        kept = {name: value for name, value in state.items() if name != KEY}
        if len(kept) == len(state):
            logger.warning(
                "The checkpoint's data loader has no curriculum in it: it was written without gradalign. Its place in "
                "the dataset is left; the order of problems, and the curriculum, go on from what the scorer has."
            )
            return
        self.link.load_state_dict(state[KEY])
        super().load_state_dict(kept)


def _as_list(rows: list[Any]) -> list[Any]:
    return rows
