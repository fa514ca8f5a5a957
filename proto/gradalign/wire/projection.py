"""How sketches were made: the value that keeps sketches of different makings apart."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gradalign.errors import InvalidValue
from gradalign.wire.checks import check_int, check_name, shown

__all__ = ["LAYOUT", "MAX_DIM", "Projection", "parameters_digest"]

LAYOUT = 1
MAX_DIM = 1 << 20
_KEYS = {"id", "dim", "seed", "layout", "parameters", "preconditioner"}
_DIGEST = re.compile(r"[0-9a-f]{64}")


def parameters_digest(shapes: Mapping[str, Iterable[int]]) -> str:
    """SHA-256, in hex, of the lines `name:d0xd1x...` of all sketched parameters, sorted by name.

    Args:
        shapes: global (unsharded) shape by canonical parameter name.
    """
    lines = (f"{name}:{'x'.join(str(int(d)) for d in shape)}\n" for name, shape in sorted(shapes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Projection:
    """The making of a sketch. All sketches of a run must agree in it; the scorer refuses others with a 409.

    Attributes:
        dim: number of buckets k.
        seed: seed of the hashes, 0 or more.
        parameters: `parameters_digest` of the sketched parameters.
        preconditioner: `none`, or the name of the frozen diagonal applied before projection.
        layout: version of the sketch's layout; 1.
    """

    dim: int
    seed: int
    parameters: str
    preconditioner: str = "none"
    layout: int = LAYOUT

    def __post_init__(self) -> None:
        check_int("projection.dim", self.dim, low=1, high=MAX_DIM)
        check_int("projection.seed", self.seed)
        check_name("projection.preconditioner", self.preconditioner)
        if isinstance(self.layout, bool) or self.layout != LAYOUT:
            raise InvalidValue(
                f"projection.layout is {shown(self.layout)}; this version speaks layout {LAYOUT}. "
                "Bring the trainer's and the scorer's gradalign to the same version.",
                param="projection.layout",
            )
        if not isinstance(self.parameters, str) or not _DIGEST.fullmatch(self.parameters):
            raise InvalidValue(
                f"projection.parameters is {shown(self.parameters)}; expected a SHA-256 in 64 lower-case hex digits, "
                "as gradalign.parameters_digest gives it.",
                param="projection.parameters",
            )

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of `{layout}|{dim}|{seed}|{parameters}|{preconditioner}`."""
        text = f"{self.layout}|{self.dim}|{self.seed}|{self.parameters}|{self.preconditioner}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_map(self) -> dict[str, Any]:
        """The map that goes on the wire."""
        return {
            "id": self.id,
            "dim": self.dim,
            "seed": self.seed,
            "layout": self.layout,
            "parameters": self.parameters,
            "preconditioner": self.preconditioner,
        }

    @classmethod
    def from_map(cls, value: Any) -> Projection:
        """Read the wire's map; a wrong key, value or id raises InvalidValue."""
        if not isinstance(value, Mapping) or set(value) != _KEYS:
            given = shown(sorted(map(str, value)), 300) if isinstance(value, Mapping) else shown(value)
            raise InvalidValue(
                f"projection has {given}; expected a map with exactly the keys {sorted(_KEYS)}.", param="projection"
            )
        projection = cls(**{key: value[key] for key in _KEYS - {"id"}})
        if value["id"] != projection.id:
            raise InvalidValue(
                f"projection.id is {shown(value['id'])}, but the other keys give {projection.id!r}; send that id, or "
                "correct the key that differs (the id is the first 16 hex digits of the SHA-256 of "
                "'layout|dim|seed|parameters|preconditioner').",
                param="projection.id",
            )
        return projection
