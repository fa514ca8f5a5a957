"""The validation gradient v, kept where the backward left it, and its length over all ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradalign.errors import DirectionError, SketchError
from gradalign.forward.parameters.ranks import add_over_ranks
from gradalign.forward.parameters.shards import Shard, part_of, same_place, square
from gradalign.sketch.parameters.shards import LocalGradient
from gradalign.sketch.preconditioner import Preconditioner

__all__ = ["Vector", "check_preconditioner", "take_vector"]


@dataclass(frozen=True)
class Vector:
    """A direction d in the space of the parameters, and what products along it are divided by.

    Attributes:
        parts: of this rank's shards, in their order; None where the backward left no gradient.
        places: where every shard lies, with the shard's weight; to tell later whether they are still the same.
        versions: the shards' version counters when v was taken.
        size: |d|, over all ranks.
        length: |v|, in the preconditioner's geometry; products are those with d / length.
        expected: what the products of the validation rows add up to: <v, d> / length; without a preconditioner |v|.
        weights_norm: |theta|, over all ranks.
    """

    parts: Sequence[Tensor | None]
    places: Sequence[LocalGradient]
    versions: Sequence[int]
    size: float
    length: float
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
        return [s.owner._version for s in shards] != list(self.versions)


def _told(part: LocalGradient | None) -> str:
    if part is None:
        return "nothing"
    return f"{tuple(part.shape)}, {part.tensor.dtype}, of which {tuple(part.tensor.shape)} at {part.offset} here"


def take_vector(
    shards: Sequence[Shard], preconditioner: Preconditioner | None, group: Any, *, keep: bool, offload: bool
) -> Vector:
    """Take v out of the gradients of all shards, with one all-reduce of four scalars.

    Raises:
        DirectionError: there is no gradient, it is zero, or not finite.
    """
    figures: dict[Any, Tensor] = {}
    parts: list[Tensor | None] = []
    for shard in shards:
        gradient = shard.gradient(keep=keep)
        part = gradient if gradient is None else _directed(gradient, shard, preconditioner)
        sums = figures.setdefault(shard.spread, torch.zeros(4, dtype=torch.float64))
        if shard.counted:
            sums[3] += square(shard.weight, shard.weight).cpu()
        if part is not None and gradient is not None:
            if shard.counted:
                sums += torch.stack([*_figures(part, gradient, preconditioner), sums.new_zeros(())])
            gradient = None
            part = part.to("cpu") if offload else part
        parts.append(part)
    total = add_over_ranks(figures, group)
    size, length, product, weights = (float(x) for x in total)
    _check_length(length, parts, shards)
    places = [s.part._replace(tensor=torch.empty_like(s.weight, device="meta")) for s in shards]
    return Vector(
        parts, places, [s.owner._version for s in shards], math.sqrt(size), math.sqrt(length),
        product / math.sqrt(length), math.sqrt(weights),
    )  # fmt: skip


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
