"""The parameters that a direction moves: a model's own tensors or DTensors, or the shards of any engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from gradalign.errors import DirectionError, SketchError
from gradalign.sketch.parameters.names import canonical_name, trainable_parameters
from gradalign.sketch.parameters.shards import LocalGradient, check_part, is_sharded, local_part, own_part

__all__ = [
    "HasLocalParameters",
    "LocalParameter",
    "LocalParameters",
    "Shard",
    "engine_shards",
    "model_shards",
    "part_of",
    "same_place",
    "square",
    "widest_mesh",
]


class LocalParameter(NamedTuple):
    """The part of one parameter that this rank holds, for an engine that shards in a way of its own.

    Attributes:
        name: of the parameter; wrapper prefixes are stripped.
        shape: of the whole parameter.
        offset: index of the part's first element: one number an axis, for a block; or one number in all, for a run of
            elements of the flattened parameter. As in `gradalign.sketch.LocalGradient`.
        tensor: the part itself, which is moved in place.
        gradient: where the backward leaves the part's gradient: a tensor, or a function that gives it after the backward.
            By default `tensor.grad`, which is taken; another is copied, since the engine will use its buffer again.
        counted: False on all but one of the ranks that hold this same part.
    """

    name: str
    shape: Sequence[int]
    offset: Any
    tensor: Tensor
    gradient: Tensor | Callable[[], Tensor | None] | None = None
    counted: bool = True


class HasLocalParameters(Protocol):
    """Anything that can say which parameters a rank holds: a wrapper of one's own around an engine."""

    def iter_local_parameters(self) -> Iterable[tuple[Any, ...]]:
        """This rank's parts, as the fields of `LocalParameter`, now; asked again at every use."""


LocalParameters: TypeAlias = HasLocalParameters | Iterable[tuple[Any, ...]]


@dataclass(frozen=True)
class Shard:
    """A part of a parameter, in this rank's memory.

    Attributes:
        part: the name, global shape and offset, with the local weight; writing to it changes the parameter, and leaves
            its version counter alone, so that a graph which the trainer holds can still run backward.
        owner: the tensor that has `.grad`.
        own_gradient: the gradient where it is not `.grad`.
        counted: whether the part enters sums over ranks on this rank.
        spread: the device mesh that the parameter is spread over, or None.
    """

    part: LocalGradient
    owner: Tensor
    own_gradient: Tensor | Callable[[], Tensor | None] | None
    counted: bool
    spread: Any

    @property
    def weight(self) -> Tensor:
        """The local part of the parameter."""
        return self.part.tensor

    def gradient(self, *, keep: bool) -> Tensor | None:
        """The local part of the gradient, which is the caller's from now on; None where the backward left none.

        Args:
            keep: leave `.grad` as it is, and give a copy.
        """
        if self.own_gradient is not None:
            given = self.own_gradient() if callable(self.own_gradient) else self.own_gradient
            return None if given is None else self._fitting(given.detach()).clone()
        gradient = self.owner.grad
        if gradient is None:
            return None
        local = self._fitting(_local(gradient.detach(), self.owner))
        if keep:
            return local.clone()
        self.owner.grad = None
        return local

    def _fitting(self, gradient: Tensor) -> Tensor:
        if gradient.is_sparse:
            gradient = gradient.to_dense()
        if gradient.shape != self.weight.shape:
            raise DirectionError(
                f"the local gradient of {self.part.name} has shape {tuple(gradient.shape)} and the local weight "
                f"{tuple(self.weight.shape)}; give both as the engine cuts them, or .grad in the parameter's placement."
            )
        return gradient


def _local(gradient: Any, owner: Any) -> Tensor:
    if not is_sharded(gradient):
        return gradient  # type: ignore[no-any-return]
    if is_sharded(owner) and gradient.placements != owner.placements:
        gradient = gradient.redistribute(owner.device_mesh, owner.placements)
    local: Tensor = gradient.to_local()
    return local


def model_shards(model: nn.Module) -> Iterator[Shard]:
    """What this rank holds of a model's trainable parameters; a tied weight once.

    Raises:
        DirectionError: FSDP1 or ZeRO-3 hides the parameters of this model.
    """
    for module in model.modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            raise DirectionError(
                "this model is wrapped in FSDP1 (FullyShardedDataParallel), whose parameters are views of flat buffers; "
                "shard it by FSDP2's fully_shard, or give the flat shards as Direction(parameters=...)."
            )
    for name, parameter in trainable_parameters(model):
        if hasattr(parameter, "ds_id"):
            raise DirectionError(
                f"DeepSpeed ZeRO-3 holds {name}; give its partitions as Direction(parameters=...), ds_tensor for tensor."
            )
        local, offset, mesh = own_part(parameter.data)
        counted = mesh is None or local_part(parameter.data)[0].numel() == local.numel()
        part = LocalGradient(name, tuple(parameter.shape), offset, local.data)
        yield Shard(part, parameter, None, counted, mesh)


def engine_shards(parameters: LocalParameters) -> Iterator[Shard]:
    """What an engine says that this rank holds.

    Raises:
        DirectionError: a part does not lie inside its parameter, or is no tensor of a floating dtype.
    """
    listed: Any = parameters.iter_local_parameters() if hasattr(parameters, "iter_local_parameters") else parameters
    for given in listed:
        name, shape, offset, tensor, *rest = given
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise DirectionError(f"the local part of {name} is {_kind(tensor)}; expected a tensor of a floating dtype.")
        own = LocalParameter(name, shape, offset, tensor, *rest)
        place = own.offset if isinstance(own.offset, int) else tuple(own.offset)
        part = LocalGradient(canonical_name(name), tuple(shape), place, tensor.data)
        try:
            check_part(part)
        except SketchError as error:
            raise DirectionError(str(error)) from error
        yield Shard(part, tensor, own.gradient, own.counted, None)


def _kind(value: Any) -> str:
    return f"of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def part_of(shard: Shard, tensor: Tensor) -> LocalGradient:
    """Another tensor that lies in a shard's place."""
    return shard.part._replace(tensor=tensor)


def same_place(one: LocalGradient, other: LocalGradient) -> bool:
    """Whether two parts are of one parameter, cut in one way."""
    return one[:3] == other[:3] and one.tensor.shape == other.tensor.shape and one.tensor.dtype == other.tensor.dtype


def square(one: Tensor, other: Tensor) -> Tensor:
    """The inner product of two tensors, float64 scalar; no copy of a whole tensor is made."""
    found = torch.zeros((), dtype=torch.float64, device=one.device)
    for left, right in zip(one.reshape(-1).split(1 << 15), other.reshape(-1).split(1 << 15), strict=True):
        wide = (
            torch.float64 if torch.float64 in (left.dtype, right.dtype) or left.device.type == "cpu" else torch.float32
        )
        found += (left.to(wide) @ right.to(wide)).double()
    return found


def widest_mesh(shards: Sequence[Shard]) -> Any:
    """The device mesh whose ranks hold parts of the same weights, and so must move them alike; None without one."""
    meshes = [s.spread for s in shards if s.spread is not None]
    return max(meshes, key=lambda mesh: int(mesh.size())) if meshes else None
