"""What the ranks of a sharded model tell each other about a capture: what they agree on, and sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradalign.errors import SketchError

__all__ = ["Ranks"]


class Ranks:
    """The ranks over which one model is sharded; each captures rows of its own.

    All methods are collectives: every rank calls them, in one order.

    Args:
        mesh: the device mesh of the shards; sums are over all of its axes.
    """

    def __init__(self, mesh: Any) -> None:
        self._groups = [mesh.get_group(axis) for axis in range(mesh.ndim)]
        self.device = torch.device(mesh.device_type)

    def add(self, *tensors: Tensor) -> None:
        """Sum each tensor over the ranks, in place."""
        for tensor in tensors:
            for group in self._groups:
                torch.distributed.all_reduce(tensor, group=group)

    def any(self, here: bool) -> bool:
        """Whether something holds on at least one rank."""
        return self._largest([int(here)]) == [1]

    def agree(self, **figures: int) -> None:
        """Raise SketchError, on all ranks alike, unless every rank gives the same figures."""
        largest = self._largest([*figures.values(), *(-value for value in figures.values())])
        for name, high, low in zip(figures, largest, largest[len(figures) :], strict=False):
            if high != -low:
                raise SketchError(
                    f"the ranks of the sharded model give different values of {name}, from {-low} to {high}; open the "
                    "capture with the same arguments on every rank, with one `problems=` and -1 for rows of no problem."
                )

    def check_rows(self, index: Tensor, problems: int, *, whole: bool) -> None:
        """Raise SketchError, on all ranks alike, if none has a row of a problem; or, with `whole`, two have of one."""
        held = torch.zeros(problems, dtype=torch.long, device=self.device)
        held[index[index >= 0].unique().to(self.device)] = 1
        self.add(held)
        if not bool(held.any()):
            raise SketchError("problem_index is -1 on every rank; expected a row of some problem on one of them.")
        spread = (held > 1).nonzero().flatten().tolist()
        if whole and spread:
            raise SketchError(
                f"problems {spread[:10]} have rows on several ranks; norms do not add over ranks. Keep all rows of a "
                "problem on one rank, capture without `against`, or take from_grads(against=...) after a backward a problem."
            )

    def _largest(self, values: list[int]) -> list[int]:
        found = torch.tensor(values, device=self.device)
        for group in self._groups:
            torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=group)
        return found.tolist()
