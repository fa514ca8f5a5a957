"""Per-problem gradients of one parameter at a time, sketched as they are formed and then forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradalign.sketch.capture.exact import Exact, Piece, Place
from gradalign.sketch.capture.rows.problems import Groups
from gradalign.sketch.hashing.factors import add_factors, cheaper
from gradalign.sketch.hashing.fixedpoint import add_fixed
from gradalign.sketch.kernels import cpu as compiled
from gradalign.sketch.kernels import gpu as fused
from gradalign.sketch.kernels.tables import HashTable

__all__ = ["Accumulator"]

# Elements of per-problem gradients that are held at a time: many small matrices, or one block of a large one.
_CHUNK = 1 << 20


class Accumulator:
    """The sketches of all problems of one capture, on one device.

    Args:
        problems: number of problems.
        dim: number of buckets.
        dtype: that sketches accumulate in.
        device: where the gradients are.
        table: the hashes of a parameter by canonical name.
        exact: the gradient to take exact products with, if any.
        scale: the multipliers of a preconditioner at a place, as a tensor is; None for none.
        fixed: whether to add in fixed point.
    """

    def __init__(
        self,
        problems: int,
        dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        table: Callable[[str], HashTable],
        exact: Exact | None = None,
        scale: Callable[[Place, Tensor], Tensor | None] = lambda _place, _like: None,
        fixed: bool = False,
    ) -> None:
        self._table = table
        self._dtype = dtype
        self._exact = exact
        self.found = torch.zeros(problems, 2, dtype=torch.float64, device=device)
        """With `exact`: each problem's product with that gradient and its own squared norm so far; [problems, 2]."""
        self._scale = scale
        self.fixed = torch.zeros(problems, dim, dtype=torch.int64, device=device) if fixed else None
        """In fixed point: the sketches so far, in units of `QUANTUM`; [problems, dim]."""
        self.bulk = torch.zeros(problems, dtype=torch.float64, device=device)
        """In fixed point: the sum of the absolute values of each problem's gradients."""
        # Twice dim, so that row bucket + column bucket needs no modulo.
        self._wide = torch.zeros(0 if fixed else problems, 2 * dim, dtype=dtype, device=device)

    def sketches(self) -> Tensor:
        """The sketches so far, [problems, dim]; not in fixed point."""
        halves: Tensor = self._wide.unflatten(1, (2, -1))
        return halves.sum(1)

    def outer(self, place: Place, left: Tensor, right: Tensor, groups: Groups, *, total: bool) -> Tensor | None:
        """Add each problem's sum of outer products.

        Args:
            place: the parameter, and where the product lies in its matrix view.
            left: [n, R], one factor a row.
            right: [n, C].
            groups: problem of each of the n rows.
            total: whether the sum over all rows is wanted.

        Returns:
            The sum over all rows, [R, C], or None.
        """
        left, right = self.factor(groups.sort(left)), self.factor(groups.sort(right))
        table = self._block(place)
        work = _Work(table, None, self._partner(place, left), self._scale(place, left))
        plain = self._exact is None and self.fixed is None and work.scale is None
        if plain and cheaper(table, groups.bounds):
            add_factors(self._wide[:, : table.dim], left, right, table, groups.bounds)
            return left.t() @ right if total else None
        whole = left.new_zeros(left.shape[1], right.shape[1]) if total else None
        work = replace(work, whole=whole)
        if left.shape[1] * right.shape[1] * 2 > _CHUNK:
            self._large(left, right, groups, work)
        else:
            self._small(left, right, groups, work)
        rest = groups.bounds[-1]
        if whole is not None and rest < len(left):
            whole.addmm_(left[rest:].t(), right[rest:])
        return whole

    def rows(self, place: Place, index: Tensor, values: Tensor, groups: Groups) -> None:
        """Add each problem's rows of a matrix: row `index[i]` (LongTensor [n]) gets `values[i]` ([n, C])."""
        index, values, bounds = groups.sort(index), self.factor(groups.sort(values)), groups.bounds
        scale, partner = self._scale(place, values), self._partner(place, values)
        if scale is not None:
            values = values * scale[index]
        if partner is not None:
            index, values, bounds = _once_a_problem(index, values, bounds)
            partner = partner[index].contiguous()
        table = self._block(place)
        taken = HashTable(table.rows.take(index), table.cols, table.dim)
        if self._compiled(values) and self.fixed is None:
            against = None if partner is None else partner.numpy()
            found = compiled.add_matrices(
                self._wide.numpy(), values.unsqueeze(0).numpy(), taken, bounds=bounds, against=against
            )
            self._find(0, found)
            return
        for problem, (start, stop) in enumerate(pairwise(bounds)):
            work = _Work(taken, None, partner, None).rows(slice(start, stop))
            self._absorb(problem, values[start:stop].unsqueeze(0), work)

    def dense(self, place: Place, gradients: Tensor) -> None:
        """Add one gradient a problem, [problems, ...], each whole rows of the parameter's matrix view at `place`."""
        if gradients.numel() == 0:
            return
        matrices = self.factor(gradients.reshape(len(gradients), place[2], -1))
        work = _Work(self._block(place), None, self._partner(place, matrices), self._scale(place, matrices))
        self._absorb(0, matrices, work)

    def pieces(self, place: Place, pieces: list[Piece]) -> None:
        """Add all uses of one place, whose gradients are summed before they are squared."""
        table, like = self._block(place), pieces[0].right
        work = _Work(table, None, self._partner(place, like), self._scale(place, like))
        gradient = like.new_empty(1, len(table.rows), len(table.cols))
        for problem in range(len(self.found)):
            gradient.zero_()
            for piece in pieces:
                piece.add_to(gradient[0], problem)
            self._absorb(problem, gradient, work)

    def factor(self, values: Tensor) -> Tensor:
        """Values in a dtype that sums can be taken in: half precision is widened to the dtype of the sketches."""
        half = values.dtype not in (torch.float32, torch.float64)
        return (values.to(self._dtype) if half else values).contiguous()

    def _block(self, place: Place) -> HashTable:
        name, row, count = place
        return self._table(name).block(slice(row, row + count), slice(None))

    def _partner(self, place: Place, like: Tensor) -> Tensor | None:
        return None if self._exact is None else self._exact.partner(place, like)

    def _large(self, left: Tensor, right: Tensor, groups: Groups, work: _Work) -> None:
        step = max(1, _CHUNK // right.shape[1])
        buffer = left.new_empty(1, min(step, left.shape[1]), right.shape[1])
        for top in range(0, left.shape[1], step):
            block = slice(top, top + step)
            part = work.rows(block)
            for problem, (start, stop) in enumerate(pairwise(groups.bounds)):
                if stop == start:
                    continue
                factor = left[start:stop, block].t()
                product = buffer[:, : len(factor)]
                torch.mm(factor, right[start:stop], out=product[0])
                self._absorb(problem, product, part)

    def _small(self, left: Tensor, right: Tensor, groups: Groups, work: _Work) -> None:
        shape = (left.shape[1], right.shape[1])
        problems = len(groups.bounds) - 1
        step = max(1, _CHUNK // max(1, shape[0] * shape[1]))
        for first in range(0, problems, step):
            last = min(problems, first + step)
            if groups.size is not None:
                span = slice(first * groups.size, last * groups.size)
                folded = (last - first, groups.size)
                factors = left[span].unflatten(0, folded), right[span].unflatten(0, folded)
                products = torch.bmm(factors[0].transpose(1, 2), factors[1])
            else:
                products = left.new_zeros(last - first, *shape)
                for problem in range(first, last):
                    rows = slice(groups.bounds[problem], groups.bounds[problem + 1])
                    if rows.stop > rows.start:
                        torch.mm(left[rows].t(), right[rows], out=products[problem - first])
            self._absorb(first, products, replace(work, whole=None))
            if work.whole is not None:
                work.whole.add_(products.sum(0))

    def _absorb(self, first: int, products: Tensor, work: _Work) -> None:
        """Add gradients [n, R, C] of problems `first` to `first + n - 1`."""
        if products.numel() == 0:
            return
        if work.scale is not None or self.fixed is not None:
            self._absorb_apart(first, products, work)
            return
        wide = self._wide[first : first + len(products)]
        if self._compiled(products):
            whole, against = (None if t is None else t.numpy() for t in (work.whole, work.against))
            self._find(
                first, compiled.add_matrices(wide.numpy(), products.numpy(), work.table, whole=whole, against=against)
            )
            return
        if fused.available(wide, products):
            fused.add_matrices(wide[:, : work.table.dim], products, work.table)
            self._measure(first, products, work)
            return
        rows, cols = work.table.rows, work.table.cols
        buckets = (rows.buckets[:, None] + cols.buckets).flatten()
        wide.index_add_(1, buckets, (products.to(wide.dtype) * (rows.signs[:, None] * cols.signs)).flatten(1))
        self._measure(first, products, work)

    def _absorb_apart(self, first: int, products: Tensor, work: _Work) -> None:
        """As `_absorb`, of gradients that are scaled first or added in fixed point."""
        if work.whole is not None:
            work.whole.add_(products.sum(0))
        scaled = products if work.scale is None else products * work.scale
        rest = replace(work, whole=None, scale=None)
        if self.fixed is None:
            self._absorb(first, scaled, rest)
            return
        reached = slice(first, first + len(products))
        self.bulk[reached] += add_fixed(self.fixed[reached], scaled, work.table)
        self._measure(first, scaled, rest)

    def _measure(self, first: int, products: Tensor, work: _Work) -> None:
        if work.whole is not None:
            work.whole.add_(products.sum(0))
        if work.against is not None:
            dots, norms = (products * work.against).double(), products.double().square()
            self.found[first : first + len(products)] += torch.stack([dots.sum((1, 2)), norms.sum((1, 2))], 1)

    def _find(self, first: int, found: np.ndarray[Any, np.dtype[np.float64]] | None) -> None:
        if found is not None:
            self.found[first : first + len(found)] += torch.from_numpy(found)

    def _compiled(self, values: Tensor) -> bool:
        return values.device.type == "cpu" and compiled.available()


@dataclass(frozen=True)
class _Work:
    """What to do with gradients of one place: hashes, and matrices to add them to, multiply and take products with."""

    table: HashTable
    whole: Tensor | None
    against: Tensor | None
    scale: Tensor | None

    def rows(self, part: slice) -> _Work:
        whole, against, scale = (None if t is None else t[part] for t in (self.whole, self.against, self.scale))
        return _Work(self.table.block(part, slice(None)), whole, against, scale)


def _once_a_problem(index: Tensor, values: Tensor, bounds: list[int]) -> tuple[Tensor, Tensor, list[int]]:
    """Rows of one problem that have one index, added: norms are of sums."""
    ends = torch.tensor(bounds[1:], device=index.device)
    owner = torch.bucketize(torch.arange(len(index), device=index.device), ends, right=True)
    width = int(index.max()) + 1 if len(index) else 1
    keys, where = torch.unique(owner * width + index, return_inverse=True)
    added = values.new_zeros(len(keys), values.shape[1]).index_add_(0, where, values)
    starts = torch.searchsorted(keys, torch.arange(len(bounds), device=index.device) * width)
    return keys % width, added, starts.tolist()
