"""Gradients of which a rank holds a part: DTensors, and anything else that can say where its part lies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from gradalign.errors import SketchError
from gradalign.sketch.kernels.tables import HashTable
from gradalign.sketch.parameters.names import canonical_name
from gradalign.wire.countsketch import matrix_shape

__all__ = [
    "HasLocalGradients",
    "LocalGradient",
    "LocalGradients",
    "blocks",
    "check_part",
    "check_placement",
    "is_sharded",
    "local_part",
    "own_part",
    "paired",
    "placed_as",
    "whole_tensor",
]


class LocalGradient(NamedTuple):
    """The part of one parameter's gradient that this rank holds.

    Attributes:
        name: of the parameter; wrapper prefixes are stripped.
        shape: of the whole parameter.
        offset: index of the part's first element: one number an axis, for a block; or one number in all, for a run of
            elements of the flattened parameter (FSDP1, ZeRO, Megatron's distributed optimizer).
        tensor: the part: a block, of as many axes as the parameter; or a run, with one axis.
    """

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...] | int
    tensor: Tensor


class HasLocalGradients(Protocol):
    """Anything that can say what a rank holds: a wrapper of one's own around an engine."""

    def iter_local_grads(self) -> Iterable[tuple[str, Sequence[int], Any, Tensor]]:
        """This rank's parts, as (name, global shape, offset, tensor); see `LocalGradient`."""


LocalGradients: TypeAlias = HasLocalGradients | Iterable[tuple[str, Sequence[int], Any, Tensor]]


def _listed(parts: LocalGradients) -> Iterator[LocalGradient]:
    found: Any = parts.iter_local_grads() if hasattr(parts, "iter_local_grads") else parts
    for name, shape, offset, tensor in found:
        yield LocalGradient(name, tuple(shape), offset, tensor)


def local_part(gradient: Tensor) -> tuple[Tensor, tuple[int, ...], Any]:
    """This rank's part of a gradient, the offset of its first element, and the device mesh it is spread over.

    A plain tensor is all there, with None for a mesh. What several ranks hold alike is given by the first of them alone,
    and by the others as an empty tensor, so that the sketches of all ranks of the mesh add up to that of the gradient.
    """
    local, offset, mesh = own_part(gradient)
    if mesh is not None:
        dtensor: Any = gradient
        place = mesh.get_coordinate()
        if place is None or any(p.is_replicate() and at for p, at in zip(dtensor.placements, place, strict=True)):
            local = local.new_empty((0,) * max(1, local.ndim))
    return local, offset, mesh


def own_part(gradient: Tensor) -> tuple[Tensor, tuple[int, ...], Any]:
    """As `local_part`, with what several ranks hold alike given by all of them."""
    if not is_sharded(gradient):
        return gradient, (0,) * gradient.ndim, None
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    dtensor: Any = gradient
    mesh, placements = dtensor.device_mesh, dtensor.placements
    _, offset = compute_local_shape_and_global_offset(dtensor.shape, mesh, placements)
    return dtensor.to_local(), tuple(offset), mesh


def placed_as(gradient: Tensor, local: Tensor) -> Tensor:
    """This rank's part of another tensor that is spread as a gradient is."""
    if not is_sharded(gradient):
        return local
    from torch.distributed.tensor import DTensor

    dtensor: Any = gradient
    placed: Tensor = DTensor.from_local(
        local, dtensor.device_mesh, dtensor.placements, run_check=False, shape=dtensor.shape, stride=dtensor.stride()
    )
    return placed


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor whole on every rank: a DTensor gathered, which is a collective, any other as it is."""
    if not is_sharded(tensor):
        return tensor
    dtensor: Any = tensor
    whole: Tensor = dtensor.full_tensor()
    return whole


def check_placement(name: str, gradient: Tensor | None, against: Tensor | None) -> None:
    """Raise SketchError, on all ranks alike, unless two gradients of a parameter are spread in the same way."""
    if gradient is None or against is None:
        return
    ours, theirs = (_placement(g) for g in (gradient, against))
    if ours != theirs:
        raise SketchError(
            f"the gradient of {name} is {ours} and that of the validation problems {theirs}; take sketcher.gradients() of "
            "the model as it is sharded now."
        )


def _placement(gradient: Any) -> str:
    return f"sharded as {gradient.placements} over {gradient.device_mesh}" if is_sharded(gradient) else "whole"


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    # Named rather than imported: torch.distributed costs a second to import where it is not in use.
    return any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__)


def blocks(table: HashTable, part: LocalGradient) -> Iterator[tuple[HashTable, Tensor]]:
    """The matrices that a part consists of, each with the hashes of its place.

    Raises:
        SketchError: the part does not lie inside the parameter.
    """
    check_part(part)
    tensor, shape, offset = part.tensor, part.shape, part.offset
    if tensor.numel() == 0:
        return
    if isinstance(offset, int):
        yield from _run(table, tensor, offset, matrix_shape(shape)[1])
        return
    if not shape:
        yield table, tensor
        return
    cols = slice(offset[-1], offset[-1] + tensor.shape[-1])
    rows = torch.zeros(1, dtype=torch.long, device=tensor.device)
    for size, first, count in zip(shape[:-1], offset, tensor.shape, strict=False):
        axis = torch.arange(first, first + count, device=tensor.device)
        rows = (rows[:, None] * size + axis).flatten()
    yield HashTable(table.rows.take(rows), table.cols[cols], table.dim), tensor


def _run(table: HashTable, run: Tensor, offset: int, width: int) -> Iterator[tuple[HashTable, Tensor]]:
    """A run of elements: the end of one row, whole rows, the start of another."""
    start = 0
    while start < len(run):
        row, col = divmod(offset + start, width)
        whole = (len(run) - start) // width if col == 0 else 0
        count = whole * width if whole else min(width - col, len(run) - start)
        place = table.block(slice(row, row + max(1, whole)), slice(col, col + min(count, width)))
        yield place, run[start : start + count]
        start += count


def check_part(part: LocalGradient) -> None:
    """Raise SketchError unless a part lies inside its parameter."""
    shape, tensor = part.shape, part.tensor
    if isinstance(part.offset, int):
        total = torch.Size(shape).numel()
        fits = tensor.ndim == 1 and part.offset >= 0 and part.offset + len(tensor) <= total
    else:
        axes = zip(part.offset, tensor.shape, shape, strict=False)
        fits = tensor.numel() == 0 or (
            len(part.offset) == tensor.ndim == len(shape)
            and all(at >= 0 and at + count <= size for at, count, size in axes)
        )
    if not fits:
        raise SketchError(
            f"the local part of {part.name} has shape {tuple(tensor.shape)} at offset {part.offset}, which does not lie in "
            f"the parameter's shape {tuple(shape)}. Give a block with one offset an axis, or a flat run with one number."
        )


def paired(
    parts: LocalGradients, against: LocalGradients | None
) -> Iterator[tuple[LocalGradient, LocalGradient | None]]:
    """Each part with that of the validation gradient that lies in its place; SketchError where there is none."""
    if against is None:
        yield from ((part, None) for part in _listed(parts))
        return
    for part, other in zip_longest(_listed(parts), _listed(against)):
        if part is None or other is None or _place(part) != _place(other):
            raise SketchError(
                f"the local parts of the gradient and of the validation gradient differ: {part and _place(part)} and "
                f"{other and _place(other)}; give both in one order and cut in one way."
            )
        yield part, other


def _place(part: LocalGradient) -> tuple[Any, ...]:
    return canonical_name(part.name), part.offset, tuple(part.tensor.shape)
