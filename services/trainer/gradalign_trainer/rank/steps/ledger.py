"""What a ranking has measured so far, on disk after every group, so that a killed one goes on where it was.

A folder `OUT.progress`: `settings.json`, what the measurements depend on; `groups.jsonl`, one line a group; and
`sketches.bin`, a float32 row for each line. The row is written before its line, so a line without a row cannot be;
what stands behind the last whole line is cut off on opening.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradalign.errors import GradAlignError

__all__ = ["Ledger", "Measurement", "check_settings"]

Row = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is kept of a group beside its sketch.

    Attributes:
        key: `train/ID` or `validation/ID`.
        loss: of the group.
        dot: exact product with the unit validation gradient; 0 where none was taken.
        norm: exact norm; 0 where none was taken.
    """

    key: str
    loss: float
    dot: float = 0.0
    norm: float = 0.0


class Ledger:
    """Measurements by key, in memory and on disk.

    Args:
        folder: of the files.
        settings: what the measurements depend on, as JSON holds it.
        dim: of the sketches.
        resume: go on from what the folder holds.

    Raises:
        GradAlignError: the folder is of other settings, which the message names; or it holds measurements that are not to
            be gone on from.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], dim: int, *, resume: bool) -> None:
        self._folder, self._dim = folder, dim
        self._found: dict[str, tuple[Measurement, Row]] = {}
        if not resume:
            _refuse_to_lose(folder)
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        check_settings(folder, settings)
        self._read()
        self._lines = (folder / "groups.jsonl").open("ab")
        self._rows = (folder / "sketches.bin").open("ab")

    def _read(self) -> None:
        lines, rows = self._folder / "groups.jsonl", self._folder / "sketches.bin"
        written = lines.read_bytes() if lines.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]
        found = [Measurement(**json.loads(line)) for line in whole.splitlines()]
        raw = rows.read_bytes() if rows.exists() else b""
        sketches = np.frombuffer(raw[: len(found) * self._dim * 4], np.float32).reshape(len(found), self._dim)
        self._found = {each.key: (each, row) for each, row in zip(found, sketches, strict=True)}
        for place, size in ((lines, len(whole)), (rows, sketches.nbytes)):
            place.touch()
            os.truncate(place, size)

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> tuple[Measurement, Row]:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def add(self, measurement: Measurement, sketch: Tensor) -> None:
        """Keep a measurement; it is on disk when this returns, as far as the operating system goes."""
        row = sketch.detach().float().cpu().numpy()
        self._rows.write(row.tobytes())
        self._rows.flush()
        self._lines.write(json.dumps(asdict(measurement)).encode() + b"\n")
        self._lines.flush()
        self._found[measurement.key] = (measurement, row)

    def keep_gradient(self, gradient: Mapping[str, Tensor]) -> None:
        """Keep the full validation gradient."""
        beside = self._folder / "validation.new"
        torch.save(dict(gradient), beside)
        os.replace(beside, self._folder / "validation.pt")

    def gradient(self, device: torch.device) -> dict[str, Tensor] | None:
        """The validation gradient that was kept; None where it was not."""
        place = self._folder / "validation.pt"
        return torch.load(place, map_location=device, weights_only=True) if place.exists() else None

    def close(self) -> None:
        """Close the files."""
        self._lines.close()
        self._rows.close()

    def remove(self) -> None:
        """Close and delete the files: the ranking is complete."""
        self.close()
        shutil.rmtree(self._folder)


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write what measurements depend on into their folder, or hold what stands there against it.

    Args:
        folder: of the measurements; it exists.
        settings: as JSON holds them.

    Raises:
        GradAlignError: other settings stand there; the message names them.
    """
    place = folder / "settings.json"
    if not place.exists():
        beside = place.with_suffix(".new")
        beside.write_text(json.dumps(dict(settings), sort_keys=True))
        os.replace(beside, place)
        return
    kept = json.loads(place.read_text())
    changed = [
        f"{name} was {kept.get(name)!r} and is {settings.get(name)!r}"
        for name in sorted(kept.keys() | settings.keys())
        if kept.get(name) != json.loads(json.dumps(settings.get(name)))
    ]
    if changed:
        raise GradAlignError(
            f"{folder} holds the progress of another ranking: {'; '.join(changed)}. Give the settings of that one, or "
            "delete the folder to begin anew."
        )


def _refuse_to_lose(folder: Path) -> None:
    lines = folder / "groups.jsonl"
    count = lines.read_bytes().count(b"\n") if lines.exists() else 0
    if count:
        raise GradAlignError(
            f"{folder} holds {count} gradients of an interrupted ranking; --resume goes on from them. To begin anew, delete "
            "the folder."
        )
