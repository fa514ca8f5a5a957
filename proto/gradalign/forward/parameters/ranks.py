"""Sums of scalars over the ranks that share the shards or the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["add_over_ranks", "sum_over"]


def add_over_ranks(figures: Mapping[Any, Tensor], group: Any) -> Tensor:
    """Sums of parts by the mesh that they are spread over, added over the ranks of each mesh, and then added up.

    Args:
        figures: float64 [n] by device mesh, of at least one; under None, those of parts with no mesh.
        group: a process group that the parts with no mesh are spread over, or None where this rank holds them whole.
    """
    sums = [sum_over(value, group if spread is None else spread) for spread, value in figures.items()]
    return torch.stack(sums).sum(0)


def sum_over(value: Tensor, spread: Any) -> Tensor:
    """A CPU tensor's sum over a process group or all ranks of a device mesh; itself for None."""
    for group in _groups(spread):
        device = _device(group)
        there = value.to(device, copy=True)
        torch.distributed.all_reduce(there, group=group)
        value = there.cpu()
    return value


def _groups(spread: Any) -> Iterable[Any]:
    if spread is None:
        return ()
    return [spread.get_group(axis) for axis in range(spread.ndim)] if hasattr(spread, "get_group") else [spread]


def _device(group: Any) -> torch.device:
    if "nccl" in torch.distributed.get_backend(group):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
