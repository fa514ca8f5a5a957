"""The validation gradient v, kept where the backward left it, and its length over all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from gradalign.errors import DirectionError, SketchError
from gradalign.forward.parameters.ranks import add_over_ranks
from gradalign.forward.parameters.shards import Shard, part_of, same_place, square
from gradalign.sketch.parameters.shards import LocalGradient
from gradalign.sketch.preconditioner import Preconditioner

__all__ = ["Vector", "check_preconditioner", "take_vector", "vector_of_state", "vector_state"]

_FIGURES: Final = ("size", "length", "carried", "expected", "weights_norm")


@dataclass(frozen=True)
class Vector:
    """A direction d in the space of the parameters, and what products along it are divided by.

    Attributes:
        parts: of this rank's shards, in their order; None where the backward left no gradient.
        places: where every shard lies, with the shard's weight; to tell later whether they are still the same.
        versions: the shards' version counters when v was taken.
        size: |d|, over all ranks.
        length: |v|, in the preconditioner's geometry; products are those with d / length.
        carried: what an earlier v that decays into this one adds to the length.
        expected: what the products of the validation rows add up to: <v, d> / length less `carried`; without either |v|.
        weights_norm: |theta|, over all ranks.
    """

    parts: Sequence[Tensor | None]
    places: Sequence[LocalGradient]
    versions: Sequence[int]
    size: float
    length: float
    carried: float
    expected: float
    weights_norm: float

    def check_places(self, shards: Sequence[Shard]) -> None:
        """Raise DirectionError unless the shards are those that v was taken of."""
        ours = {(p.name, p.offset): p for p in self.places}
        theirs = {(s.part.name, s.part.offset): s.part for s in shards}
        for key in [*ours, *theirs]:
            one, other = ours.get(key), theirs.get(key)
            if one is None or other is None or not same_place(one, other):
                raise DirectionError(
                    f"the direction was taken with {key[0]} as {_told(one)}, and the model now has it as {_told(other)}; "
                    "run the validation backward on the model as it is now and call take() again."
                )

    def stale(self, shards: Sequence[Shard]) -> bool:
        """Whether the weights have been written to since v was taken."""
        return _versions(shards) != list(self.versions)


def _told(part: LocalGradient | None) -> str:
    if part is None:
        return "nothing"
    return f"{tuple(part.shape)}, {part.tensor.dtype}, of which {tuple(part.tensor.shape)} at {part.offset} here"


def take_vector(
    shards: Sequence[Shard],
    preconditioner: Preconditioner | None,
    group: Any,
    *,
    keep: bool,
    offload: bool,
    earlier: Vector | None = None,
    decay: float = 0.0,
) -> Vector:
    """Take v out of the gradients of all shards, with one all-reduce of five scalars.

    Args:
        shards: of this rank.
        preconditioner: of the direction; not with a decay.
        group: that shards without a mesh are spread over.
        keep: leave the gradients as they are.
        offload: keep v on the CPU.
        earlier: the v before.
        decay: v is the gradient plus `decay` times the earlier one.

    Raises:
        DirectionError: there is no gradient, it is zero, or not finite.
    """
    figures: dict[Any, Tensor] = {None: torch.zeros(5, dtype=torch.float64)}
    parts: list[Tensor | None] = []
    before = earlier.parts if earlier is not None and decay else [None] * len(shards)
    for shard, kept in zip(shards, before, strict=True):
        gradient = shard.gradient(keep=keep)
        old = None if kept is None else kept.to(shard.weight.device)
        if old is not None:
            gradient = old * decay if gradient is None else gradient.add_(old, alpha=decay)
        part = gradient if gradient is None else _directed(gradient, shard, preconditioner)
        sums = figures.setdefault(shard.spread, torch.zeros(5, dtype=torch.float64))
        if shard.counted:
            sums[3] += square(shard.weight, shard.weight).cpu()
        if part is not None and gradient is not None:
            if shard.counted:
                sums[:3] += torch.stack(_figures(part, gradient, preconditioner))
                sums[4] += 0.0 if old is None else decay * square(old, part).cpu()
            gradient = None
            part = part.to("cpu") if offload else part
        parts.append(part)
    size, length, product, weights, carried = (float(x) for x in add_over_ranks(figures, group))
    _check_length(length, parts, shards)
    length = math.sqrt(length)
    return Vector(
        parts, _places(shards), _versions(shards), math.sqrt(size), length, carried / length,
        (product - carried) / length, math.sqrt(weights),
    )  # fmt: skip


def vector_state(vector: Vector, shards: Sequence[Shard]) -> dict[str, Any]:
    """What `vector_of_state` makes the vector of again: parts by name and offset, and figures."""
    named = zip(vector.places, vector.parts, strict=True)
    figures = {name: getattr(vector, name) for name in _FIGURES}
    return {
        "parts": {_key(place): part for place, part in named},
        "figures": {**figures, "stale": vector.stale(shards)},
    }


def vector_of_state(state: Mapping[str, Any], shards: Sequence[Shard], *, offload: bool) -> Vector:
    """The vector that a state is of, for the same shards.

    Raises:
        DirectionError: it is of other shards.
    """
    places, parts = _places(shards), dict(state["parts"])
    found: list[Tensor | None] = []
    for place, shard in zip(places, shards, strict=True):
        part = parts.pop(_key(place), ...)
        if part is ... or (part is not None and part.shape != shard.weight.shape):
            had = "nothing" if part is ... else f"shape {tuple(part.shape)}"
            raise DirectionError(
                f"the state holds {had} of {place.name} at {place.offset}, and the model here {tuple(shard.weight.shape)}; "
                "load the state that a rank saved on the same rank of the same model."
            )
        found.append(part if part is None else part.to("cpu" if offload else shard.weight.device))
    if parts:
        raise DirectionError(f"the state holds {next(iter(parts))}, which is no trainable part of the model here.")
    figures = dict(state["figures"])
    # No tensor has the version -1.
    versions = [-1] * len(shards) if figures.pop("stale") else _versions(shards)
    return Vector(found, places, versions, **figures)


def _versions(shards: Sequence[Shard]) -> list[int]:
    return [s.owner._version for s in shards]


def _places(shards: Sequence[Shard]) -> list[LocalGradient]:
    return [s.part._replace(tensor=torch.empty_like(s.weight, device="meta")) for s in shards]


def _key(place: LocalGradient) -> str:
    return f"{place.name}@{place.offset}"


def _directed(gradient: Tensor, shard: Shard, preconditioner: Preconditioner | None) -> Tensor:
    """The direction to move in: v, or P v with a preconditioner P in either of its forms."""
    if preconditioner is None:
        return gradient
    scaled = preconditioner.scale(part_of(shard, gradient), validation=True)
    if preconditioner.form == "symmetric":
        scaled = preconditioner.scale(scaled, validation=True)
    return scaled.tensor.to(gradient.dtype)


def _figures(part: Tensor, gradient: Tensor, preconditioner: Preconditioner | None) -> list[Tensor]:
    """<d, d>, the square of the length, and <v, d>."""
    own = square(part, part).cpu()
    if preconditioner is None:
        return [own, own, own]
    product = square(gradient, part).cpu()
    return [own, product if preconditioner.form == "symmetric" else own, product]


def _check_length(length: float, parts: Sequence[Tensor | None], shards: Sequence[Shard]) -> None:
    if length > 0 and math.isfinite(length):
        return
    if all(part is None for part in parts):
        raise DirectionError(
            "no trainable parameter has a .grad: run the validation batch's backward first, then take(), before "
            "zero_grad() or another engine call empties it."
        )
    for part, shard in zip(parts, shards, strict=True):
        if part is not None and not bool(torch.isfinite(part).all()):
            raise DirectionError(
                f"the validation gradient of {shard.part.name} holds inf or NaN; look at the validation loss (under fp16, "
                "unscale the gradients first)."
            )
    if length == 0:
        raise DirectionError(
            "the validation gradient is zero, and so has no direction: every validation group may have equal rewards, or "
            "zero_grad(set_to_none=False) ran before take()."
        )
    raise DirectionError(
        f"the validation gradient's squared norm is {length} on another rank, or overflows; scale it down."
    )


def check_preconditioner(preconditioner: Preconditioner | None, shards: Sequence[Shard]) -> None:
    """Raise DirectionError unless the multipliers are those of these parameters."""
    if preconditioner is None:
        return
    try:
        preconditioner.check({s.part.name: tuple(s.part.shape) for s in shards})
    except SketchError as error:
        raise DirectionError(str(error)) from error
