"""The processes of a training: what each holds, told to all, and a fault of one of them as one of all."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

from gradalign.errors import DirectionError

__all__ = ["agree", "gathered"]

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """What every process gives, in their order; all call it together, and one process need not have begun a group."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    everyone: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def agree(failed: Exception | None) -> None:
    """Raise DirectionError on every process where one has failed, so that none waits for another."""
    if any(gathered(failed is not None)):
        raise DirectionError(str(failed) if failed else "it failed on another process, whose log says why.") from failed
