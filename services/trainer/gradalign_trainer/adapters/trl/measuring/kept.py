"""The validation gradient beside a checkpoint, so that a resumed run needs no new one: a file, or one for each process.

A file holds what `Direction.state_dict` gives: of weights that every process holds whole, one has it for all; of shards,
each process writes its own, and reads it again where as many processes resume.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradalign.errors import DirectionError

__all__ = ["read_direction", "write_direction"]

NAME = "gradalign_direction"


def write_direction(
    folder: Path,
    parts: Mapping[str, Tensor | None],
    ranks: Sequence[Mapping[str, Any]],
    shard: tuple[int, int] | None,
    version: int,
) -> None:
    """Write a direction's state; a file is there whole or not at all.

    Args:
        folder: of the checkpoint.
        parts: those of the state of this process.
        ranks: what the states of all processes hold beside.
        shard: this process and how many there are; None where the weights are whole.
        version: of the validation gradient at the scorer.

    Raises:
        OSError: it cannot be written; no part of it is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _name(shard)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            torch.save({"version": version, "parts": dict(parts), "ranks": list(ranks)}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_direction(folder: Path, rank: int, shard: tuple[int, int] | None, version: int | None) -> dict[str, Any]:
    """The state that `Direction.load_state_dict` takes.

    Args:
        folder: of the checkpoint.
        rank: this process.
        shard: this process and how many there are; None where the weights are whole.
        version: of the validation gradient that the scorer holds.

    Raises:
        DirectionError: there is none for these processes, it cannot be read, or it is of another version.
    """
    path = folder / _name(shard)
    if not path.exists():
        others = sorted(other.name for other in folder.glob(f"{NAME}*.pt"))
        raise DirectionError(f"{folder} has no {path.name}, but {others[0] if others else 'no other'} of {len(others)}")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DirectionError(f"{path} cannot be read: {error}") from error
    if held["version"] != version:
        raise DirectionError(
            f"{path} is of version {held['version']} of the validation gradient, the scorer holds {version}"
        )
    ranks = held["ranks"]
    return {"parts": held["parts"], **ranks[rank if rank < len(ranks) else 0]}


def _name(shard: tuple[int, int] | None) -> str:
    return f"{NAME}.pt" if shard is None else f"{NAME}-{shard[0]:05d}-of-{shard[1]:05d}.pt"
