"""Sums of sketches, exact products and norms over the parts of one gradient, and over the ranks that hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradalign.errors import SketchError
from gradalign.sketch.hashing.fixedpoint import add_fixed, check_fixed, from_fixed
from gradalign.sketch.hashing.matrix import add_matrix
from gradalign.sketch.kernels.tables import HashTable
from gradalign.sketch.parameters.shards import LocalGradient, blocks, is_sharded, local_part

__all__ = ["ExactSketch", "Totals", "check_finite", "exact_sketch"]

_RUN = 1 << 15


class ExactSketch(NamedTuple):
    """One problem's row with its exact figures.

    Attributes:
        sketch: float32 [dim], or the Sketcher's dtype.
        dot: exact product of the gradient with the unit vector of the validation gradient; the wire's `dots`.
        norm: exact norm of the gradient; the wire's `norms`.
    """

    sketch: Tensor
    dot: float
    norm: float


@dataclass
class _Sum:
    """What one device and mesh add up: buckets, and float64 [4] of product, squared norms of both, and bulk."""

    buckets: Tensor
    figures: Tensor


class Totals:
    """Sketches of parts, by device and by the mesh that they are to be added over.

    Args:
        dim: number of buckets.
        dtype: of the sketch.
        table: the hashes of a parameter on a device.
        fixed: whether to add in fixed point.
        exact: whether products are taken, too.
    """

    def __init__(
        self, dim: int, dtype: torch.dtype, table: Callable[[str, torch.device], HashTable], *, fixed: bool, exact: bool
    ) -> None:
        self._dim = dim
        self._dtype = dtype
        self._table = table
        self._fixed = fixed
        self._exact = exact
        self._sums: dict[tuple[torch.device, Any], _Sum] = {}

    def join(self, parameter: Tensor) -> None:
        """Take part in the sum over a parameter's mesh, with nothing to add."""
        if is_sharded(parameter):
            local, _, mesh = local_part(parameter)
            self._sum(local.device, mesh)

    def add(self, part: LocalGradient, mesh: Any, against: Tensor | None = None) -> None:
        """Add a part's sketch; and where products are taken, its own squared norm and the product with that tensor."""
        device = part.tensor.device
        total, name = self._sum(device, mesh), part.name
        others: Iterable[Any] = repeat((None, None))
        if against is not None:
            others = blocks(self._table(name, device), part._replace(tensor=against))
        for (table, matrix), (_, other) in zip(blocks(self._table(name, device), part), others, strict=False):
            found = self._add(total, matrix, table, other)
            if self._exact:
                total.figures[1] += _product(matrix, matrix) if found is None else found[1]
            if other is not None:
                total.figures[0] += _product(matrix, other) if found is None else found[0]

    def add_other(self, against: Tensor, mesh: Any) -> None:
        """Add the squared norm of a part of the gradient that products are taken with."""
        self._sum(against.device, mesh).figures[2] += _product(against, against)

    def _add(self, total: _Sum, matrix: Tensor, table: HashTable, other: Tensor | None) -> Tensor | None:
        if not self._fixed:
            return add_matrix(total.buckets, matrix, table, other)
        shaped = matrix.detach().reshape(1, len(table.rows), len(table.cols))
        total.figures[3] += add_fixed(total.buckets.unsqueeze(0), shaped, table)[0]
        return None

    def sum(self, home: torch.device, group: Any = None) -> tuple[Tensor, Tensor]:
        """The sketch of all, over all ranks of each mesh and of the group; and the figures, float64 [4] on the CPU."""
        kind = torch.int64 if self._fixed else self._dtype
        total = _Sum(torch.zeros(self._dim, dtype=kind, device=home), torch.zeros(4, dtype=torch.float64, device=home))
        for (_, mesh), part in self._sums.items():
            for axis in range(0 if mesh is None else mesh.ndim):
                self._reduce(part, mesh.get_group(axis))
            total.buckets += part.buckets.to(home)
            total.figures += part.figures.to(home)
        if group is not None:
            self._reduce(total, group)
        figures = total.figures.cpu()
        if not self._fixed:
            return total.buckets, figures
        if torch.isfinite(figures[3]):
            check_fixed(figures[3:])
            return from_fixed(total.buckets, self._dtype), figures
        return torch.full((self._dim,), torch.nan, dtype=self._dtype, device=home), figures

    def _reduce(self, part: _Sum, group: Any) -> None:
        torch.distributed.all_reduce(part.buckets, group=group)
        if self._fixed or self._exact:
            torch.distributed.all_reduce(part.figures, group=group)

    def _sum(self, device: torch.device, mesh: Any) -> _Sum:
        key = (device, mesh)
        if key not in self._sums:
            kind = torch.int64 if self._fixed else self._dtype
            self._sums[key] = _Sum(
                torch.zeros(self._dim, dtype=kind, device=device), torch.zeros(4, dtype=torch.float64, device=device)
            )
        return self._sums[key]


def _product(one: Tensor, other: Tensor) -> Tensor:
    """The inner product of two tensors, float64: over short runs in their own precision, and those added in float64."""
    wide = torch.float64 if torch.float64 in (one.dtype, other.dtype) else torch.float32
    flat = (tensor.detach().flatten().split(_RUN) for tensor in (one, other))
    products = [left.to(wide) @ right.to(wide) for left, right in zip(*flat, strict=True)]
    return torch.stack(products).sum(dtype=torch.float64)


def exact_sketch(total: Tensor, figures: Tensor) -> ExactSketch:
    """The row of a sum that products were taken in."""
    dot, square, other = (float(value) for value in figures[:3])
    if not 0 < other < float("inf"):
        raise SketchError(
            f"the gradient to take products with has squared norm {other}; run the validation backward first, then take "
            "sketcher.gradients()."
        )
    return ExactSketch(total, dot / other**0.5, square**0.5)


def check_finite(total: Tensor, gradients: Sequence[tuple[str, Tensor | None]]) -> None:
    """Raise SketchError, naming the parameter, where a sketch is not finite."""
    if torch.isfinite(total).all():
        return
    for name, gradient in gradients:
        if gradient is not None and not torch.isfinite(local_part(gradient)[0]).all():
            raise SketchError(
                f"the gradient of {name} holds inf or NaN; leave this problem out of the round and look at its loss "
                "(under fp16, unscale the gradients first)."
            )
    raise SketchError(
        "every gradient that this rank holds is finite, but the sketch is not: another rank holds inf or NaN, or the sketch "
        "overflows float32 (scale the loss down, or clip the gradients)."
    )
