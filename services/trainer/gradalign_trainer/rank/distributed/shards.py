"""What a shared ranking has measured so far: one file for each batch of groups, there whole or not at all.

A folder `OUT.shards`: `settings.json`, what the measurements depend on; `pool.sqlite`, the groups in order; `pooled.npz`
and `validation.pt`, where exact products are taken; and `train/000012.npz`, what batch 12 gave. A batch is so many groups,
one behind the other in the order of the pool, so that its number says which; a ranking that goes on takes those that
are missing.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradalign.errors import GradAlignError
from gradalign_trainer.rank.steps.ledger import check_settings
from gradalign_trainer.rank.steps.responses import ResponseGroup

__all__ = ["Batch", "Pooled", "Shard", "ShardLedger"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Groups that are measured together.

    Attributes:
        part: `train` or `validation`.
        number: of the batch; it begins with the group at `number` times the groups of a batch.
        groups: of it.
        offset: responses of the pool before its own.
        exact: whether exact products with the full validation gradient are taken.
    """

    part: str
    number: int
    groups: tuple[ResponseGroup, ...]
    offset: int
    exact: bool

    def __str__(self) -> str:
        return f"{self.part} groups {self.groups[0].group_id} to {self.groups[-1].group_id}"


class Shard(NamedTuple):
    """What a batch gave; item i everywhere is its group i.

    Attributes:
        losses: float64 [n].
        dots: exact products with the unit validation gradient, float64 [n]; 0 where none was taken.
        norms: exact norms, float64 [n]; 0 where none was taken.
        tokens: response tokens, int64 [n].
        cut: responses that were cut at the longest length, int64 [n].
        sketches: float32 [n, dim].
    """

    losses: Floats
    dots: Floats
    norms: Floats
    tokens: npt.NDArray[np.int64]
    cut: npt.NDArray[np.int64]
    sketches: npt.NDArray[np.float32]


class Pooled(NamedTuple):
    """What is kept of the full validation gradient.

    Attributes:
        loss: of its groups together.
        norm: exact.
        sketch: float32 [dim].
    """

    loss: float
    norm: float
    sketch: npt.NDArray[np.float32]


class ShardLedger:
    """Shards by part and number, on disk.

    Args:
        folder: of the files; `begin` or an earlier process made it.
        size: groups of a batch.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size

    @classmethod
    def begin(cls, folder: Path, settings: Mapping[str, Any], size: int, *, resume: bool) -> ShardLedger:
        """Make the folder, or go on from it.

        Args:
            folder: of the files.
            settings: what the measurements depend on, as JSON holds it.
            size: groups of a batch; one of the settings.
            resume: go on from what the folder holds.

        Raises:
            GradAlignError: the folder is of other settings, which the message names; or it holds measurements that are not
                to be gone on from.
        """
        if not resume:
            kept = cls(folder, size).measured()
            if kept:
                raise GradAlignError(
                    f"{folder} holds {kept} batches of an interrupted ranking; --resume goes on from them. To begin anew, "
                    "delete the folder."
                )
            shutil.rmtree(folder, ignore_errors=True)
        for part in ("train", "validation"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        check_settings(folder, {**settings, "groups_per_task": size})
        return cls(folder, size)

    def batches(self, groups: int) -> int:
        """How many batches so many groups make."""
        return -(-groups // self.size)

    def measured(self) -> int:
        """How many batches are there."""
        return sum(1 for _ in self.folder.glob("*/*.npz"))

    def groups(self, number: int, of: int) -> int:
        """How many groups a batch has, of a part that has so many."""
        return min(self.size, of - number * self.size)

    def missing(self, part: str, groups: int) -> list[int]:
        """The numbers of the batches of a part that are not there."""
        return [number for number in range(self.batches(groups)) if not zipfile.is_zipfile(self._place(part, number))]

    def _place(self, part: str, number: int) -> Path:
        return self.folder / part / f"{number:06d}.npz"

    def add(self, batch: Batch, shard: Shard) -> None:
        """Keep what a batch gave; its file is whole when this returns, as far as the operating system goes."""
        _save(self._place(batch.part, batch.number), shard._asdict())

    def read(self, part: str, start: int, stop: int) -> Shard:
        """What the groups at positions from `start` to before `stop` gave; all of them are there."""
        first = start // self.size
        shards = [Shard(**_load(self._place(part, number))) for number in range(first, self.batches(stop))]
        rows = slice(start - first * self.size, stop - first * self.size)
        return Shard(*(np.concatenate(columns)[rows] for columns in zip(*shards, strict=True)))

    def cut(self, part: str, groups: int) -> int:
        """How many responses of a part were cut at the longest length."""
        found = 0
        for number in range(self.batches(groups)):
            with np.load(self._place(part, number), allow_pickle=False) as file:
                found += int(file["cut"].sum())
        return found

    def keep_pooled(self, pooled: Pooled, gradient: bytes) -> None:
        """Keep the full validation gradient, as `torch.save` writes it, and what is measured of it."""
        beside = self.folder / "validation.new"
        beside.write_bytes(gradient)
        os.replace(beside, self.folder / "validation.pt")
        _save(self.folder / "pooled.npz", {name: np.asarray(value) for name, value in pooled._asdict().items()})

    def pooled(self) -> Pooled | None:
        """What was measured of the full validation gradient; None where it was not kept."""
        place = self.folder / "pooled.npz"
        if not place.exists():
            return None
        found = _load(place)
        return Pooled(float(found["loss"]), float(found["norm"]), found["sketch"])

    def gradient(self) -> bytes:
        """The full validation gradient that was kept."""
        return (self.folder / "validation.pt").read_bytes()

    def remove(self) -> None:
        """Delete the files: the ranking is complete."""
        shutil.rmtree(self.folder)


def _save(place: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    beside = place.with_suffix(".new")
    with beside.open("wb") as file:
        np.savez(file, **dict[str, Any](columns))
    os.replace(beside, place)


def _load(place: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(place, allow_pickle=False) as file:
        return dict(file)
