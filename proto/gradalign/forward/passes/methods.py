"""The ways to a slope of log-probs along a direction, behind one face."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from gradalign.errors import DirectionError
from gradalign.forward.parameters.shards import Shard
from gradalign.forward.parameters.vector import Vector
from gradalign.forward.parameters.weights import NARROW, Weights, narrow_gathers
from gradalign.forward.passes.batches import checked_logprobs
from gradalign.forward.passes.differences import Move, central, halves, one_sided
from gradalign.forward.passes.float32 import Widened
from gradalign.forward.passes.forward_mode import dual_slopes
from gradalign.forward.passes.replay import Passes, random_base
from gradalign.forward.passes.step import Step

__all__ = ["NARROW", "Method", "Methods"]

Method: TypeAlias = Literal["one-sided", "central", "forward-ad", "float32"]

_BASE_MAY_DIFFER: Final = 0.05


class Methods:
    """Takes slopes along v's direction, all in nats a token for a step of length 1.

    Args:
        model: that the log-prob function runs; None where an engine hides it.
        shards: this rank's parts of the parameters.
        vector: v.
        step: chooses h.
        masters, synchronize, offload: as `Weights` takes them.

    Attributes:
        step: as given.
    """

    def __init__(
        self,
        model: nn.Module | None,
        shards: Sequence[Shard],
        vector: Vector,
        step: Step,
        *,
        masters: Mapping[str, Tensor],
        synchronize: Callable[[], None],
        offload: bool,
    ) -> None:
        self._model, self._shards, self._vector, self.step = model, shards, vector, step
        self._masters, self._synchronize, self._offload = masters, synchronize, offload

    @property
    def rms(self) -> float:
        """The change of a token's log-prob that the last step made, in nats."""
        return self.step.rms

    def slopes(self, method: Method, passes: Passes, *, verify: bool) -> list[Tensor]:
        """Slopes, float64 [B, T] a micro-batch.

        Args:
            method: `one-sided` needs the log-probs at theta in every micro-batch.
            passes: of the log-prob function.
            verify: run one pass more, to see that the given log-probs are what the function gives.
        """
        if method == "forward-ad":
            return self._dual(passes)
        if method == "one-sided":
            base = self.base(passes, verify=verify)
            with self._moving(method) as move:
                return one_sided(passes, move, self.step, base)
        with self._moving(method) as move:
            return central(passes, move, self.step)

    def sides(self, method: Method, passes: Passes) -> tuple[list[Tensor], list[Tensor]]:
        """Slopes by differences ahead of theta and behind it."""
        with self._moving(method) as move:
            base = self.base(passes, verify=True) if method == "one-sided" else passes()
            return halves(passes, move, self.step, base)

    def base(self, passes: Passes, *, verify: bool) -> list[Tensor]:
        """The given log-probs at theta.

        Raises:
            DirectionError: they are not what the function gives.
        """
        given = [checked_logprobs(g.logprobs_at, g, "logprobs_at") for g in passes.given]
        if verify:
            changes = [own.double() - b.to(own.device).double() for own, b in zip(passes(), given, strict=True)]
            rms = self.step.rms_of(changes, passes.given) or 0.0
            if rms > _BASE_MAY_DIFFER * self.step.target:
                raise (
                    random_base()
                    if passes.drew
                    else DirectionError(
                        f"logprobs_at differs from logprobs(batch) at these weights by {rms:.3g} nats a token (rms), "
                        f"where the step is to change it by {self.step.target}. Give what this same function gave at "
                        "these weights, not what the generator or an older policy did; or leave it out, for two passes."
                    )
                )
        return given

    def _dual(self, passes: Passes) -> list[Tensor]:
        if self._model is None or any(s.spread is not None for s in self._shards):
            raise DirectionError("forward mode needs a model of whole parameters, not shards; use method='float32'.")
        # Elements of a unit vector are near 1 / sqrt(their number): too small for float16.
        count = sum(s.weight.numel() for s in self._shards) ** 0.5
        factor = count / self._vector.size
        tangents = {
            cast("nn.Parameter", shard.owner): part.to(shard.weight.device) * factor
            for shard, part in zip(self._shards, self._vector.parts, strict=True)
            if part is not None
        }
        return dual_slopes(passes, self._model, tangents, 1 / count)

    @contextmanager
    def _moving(self, method: Method) -> Iterator[Move]:
        """Gives what moves the weights along the unit vector; in float32, those of 16 bits only as they are used."""
        if method == "float32":
            self._check_gathers()
        parts: list[Tensor | None] = list(self._vector.parts)
        used: dict[int, Callable[[], Tensor]] = {}
        distance = [0.0]
        if method == "float32" and self._model is not None:
            for at, (shard, part) in enumerate(zip(self._shards, parts, strict=True)):
                if shard.weight.dtype in NARROW and shard.spread is None and part is not None:
                    used[id(shard.owner)] = self._as_used(shard, part, distance)
                    parts[at] = None
        weights = Weights(self._shards, parts, self._masters, self._synchronize, offload=self._offload)
        with weights.moved() as move, Widened(used) if method == "float32" else nullcontext():

            def unit(size: float) -> None:
                distance[0] = size / self._vector.size
                move(distance[0])

            yield unit

    def _check_gathers(self) -> None:
        """Refuse float32 where FSDP2 writes the weights into buffers of 16 bits, which it made before this mode."""
        dtype = narrow_gathers(self._model, self._shards)
        if dtype is not None:
            raise DirectionError(
                f"method 'float32' cannot widen weights that FSDP2 gathers in {dtype}; take method='central' with "
                "target=0.1, or shards of float32 and a MixedPrecisionPolicy without param_dtype."
            )

    def _as_used(self, shard: Shard, part: Tensor, distance: Sequence[float]) -> Callable[[], Tensor]:
        origin = self._masters.get(shard.part.name, shard.weight)

        def moved() -> Tensor:
            here = shard.weight.device
            return torch.add(origin.to(here).float(), part.to(here), alpha=distance[0])

        return moved
