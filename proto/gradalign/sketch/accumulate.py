"""Per-problem gradients of one parameter at a time, sketched as they are formed and then forgotten."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradalign.sketch import compiled
from gradalign.sketch.rows import Groups
from gradalign.sketch.tables import HashTable

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
    """

    def __init__(
        self, problems: int, dim: int, *, dtype: torch.dtype, device: torch.device, table: Callable[[str], HashTable]
    ) -> None:
        self._table = table
        self._dtype = dtype
        # Twice dim, so that row bucket + column bucket needs no modulo.
        self._wide = torch.zeros(problems, 2 * dim, dtype=dtype, device=device)

    def sketches(self) -> Tensor:
        """The sketches so far, [problems, dim]."""
        halves: Tensor = self._wide.unflatten(1, (2, -1))
        return halves.sum(1)

    def outer(self, name: str, left: Tensor, right: Tensor, groups: Groups, *, row: int, total: bool) -> Tensor | None:
        """Add each problem's sum of outer products.

        Args:
            name: the parameter.
            left: [n, R], one factor a row.
            right: [n, C].
            groups: problem of each of the n rows.
            row: which row of the parameter's matrix view the first row of the product is.
            total: whether the sum over all rows is wanted.

        Returns:
            The sum over all rows, [R, C], or None.
        """
        left, right = self._factor(groups.sort(left)), self._factor(groups.sort(right))
        whole = left.new_zeros(left.shape[1], right.shape[1]) if total else None
        table = self._table(name).block(slice(row, row + left.shape[1]), slice(None))
        if left.shape[1] * right.shape[1] * 2 > _CHUNK:
            self._large(left, right, groups, table, whole)
        else:
            self._small(left, right, groups, table, whole)
        rest = groups.bounds[-1]
        if whole is not None and rest < len(left):
            whole.addmm_(left[rest:].t(), right[rest:])
        return whole

    def rows(self, name: str, index: Tensor, values: Tensor, groups: Groups) -> None:
        """Add each problem's rows of a matrix: row `index[i]` (LongTensor [n]) gets `values[i]` ([n, C])."""
        index, values = groups.sort(index), self._factor(groups.sort(values))
        table = self._table(name)
        taken = HashTable(table.rows.take(index), table.cols, table.dim)
        if self._compiled(values):
            compiled.add_matrices(self._wide.numpy(), values.unsqueeze(0).numpy(), taken, bounds=groups.bounds)
            return
        for problem, (start, stop) in enumerate(zip(groups.bounds, groups.bounds[1:], strict=False)):
            part = taken.block(slice(start, stop), slice(None))
            self._absorb(problem, values[start:stop].unsqueeze(0), part, None)

    def dense(self, name: str, gradients: Tensor, *, row: int = 0, first: int = 0) -> None:
        """Add one gradient a problem.

        Args:
            name: the parameter.
            gradients: [n, ...], each whole rows of the parameter's matrix view.
            row: the first of those rows.
            first: the problem of the first gradient.
        """
        if gradients.numel() == 0:
            return
        table = self._table(name)
        matrices = self._factor(gradients.reshape(len(gradients), -1, len(table.cols)))
        block = table.block(slice(row, row + matrices.shape[1]), slice(None))
        self._absorb(first, matrices, block, None)

    def _factor(self, values: Tensor) -> Tensor:
        # Half precision halves the error twice over when summed in itself; on the CPU it is slower, too.
        half = values.dtype not in (torch.float32, torch.float64)
        return (values.to(self._dtype) if half else values).contiguous()

    def _large(self, left: Tensor, right: Tensor, groups: Groups, table: HashTable, whole: Tensor | None) -> None:
        step = max(1, _CHUNK // right.shape[1])
        buffer = left.new_empty(1, min(step, left.shape[1]), right.shape[1])
        for top in range(0, left.shape[1], step):
            block = slice(top, top + step)
            part = table.block(block, slice(None))
            for problem, (start, stop) in enumerate(zip(groups.bounds, groups.bounds[1:], strict=False)):
                if stop == start:
                    continue
                factor = left[start:stop, block].t()
                product = buffer[:, : len(factor)]
                torch.mm(factor, right[start:stop], out=product[0])
                self._absorb(problem, product, part, None if whole is None else whole[block])

    def _small(self, left: Tensor, right: Tensor, groups: Groups, table: HashTable, whole: Tensor | None) -> None:
        shape = (left.shape[1], right.shape[1])
        problems = len(groups.bounds) - 1
        step = max(1, _CHUNK // (shape[0] * shape[1]))
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
            self._absorb(first, products, table, None)
            if whole is not None:
                whole += products.sum(0)

    def _absorb(self, first: int, products: Tensor, table: HashTable, whole: Tensor | None) -> None:
        """Add gradients [n, R, C] of problems `first` to `first + n - 1`; to `whole` [R, C] too where it is given."""
        if products.numel() == 0:
            return
        wide = self._wide[first : first + len(products)]
        if self._compiled(products):
            target = None if whole is None else whole.numpy()
            compiled.add_matrices(wide.numpy(), products.numpy(), table, whole=target)
            return
        buckets = (table.rows.buckets[:, None] + table.cols.buckets).flatten()
        signs = table.rows.signs[:, None] * table.cols.signs
        wide.index_add_(1, buckets, (products.to(wide.dtype) * signs).flatten(1))
        if whole is not None:
            whole += products.sum(0)

    def _compiled(self, values: Tensor) -> bool:
        return values.device.type == "cpu" and compiled.available()
