"""Which problem each row of an activation belongs to, inside a capture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradalign.errors import SketchError
from gradalign.sketch.capture.rows.moves import (
    DESTINATION,
    JOINS,
    MOVES,
    ROWWISE,
    UNKNOWN,
    flat,
    joined,
    keeps_order,
    rearranges,
)

__all__ = ["Groups", "ProblemRows"]

_TAG = "_gradalign_rows"
# On a tag: the rows are those of the batch, all of them, with axes moved or repeated (heads in front of tokens).
_REARRANGED = "_gradalign_rearranged"


@dataclass(frozen=True)
class Groups:
    """Rows gathered by problem.

    Attributes:
        order: LongTensor that sorts the rows by problem, or None where they lie so already.
        bounds: rows `bounds[p]` to `bounds[p + 1]` of the sorted rows are problem p's; rows behind the last bound
            belong to no problem.
        ids: LongTensor, problem of each row as the rows lie; the number of problems stands for none.
        size: number of rows of every problem where all have the same number and no row is left over, else None.
    """

    order: Tensor | None
    bounds: list[int]
    ids: Tensor
    size: int | None

    @property
    def complete(self) -> bool:
        """Whether every row belongs to a problem."""
        return self.bounds[-1] == len(self.ids)

    @classmethod
    def of(cls, ids: Tensor, problems: int) -> Groups:
        """Group rows by their ids, LongTensor [n] in [-1, problems)."""
        ids = torch.where(ids < 0, problems, ids)
        counts = torch.bincount(ids, minlength=problems + 1).tolist()
        order = None if bool((ids[1:] >= ids[:-1]).all()) else torch.argsort(ids, stable=True)
        bounds = [0]
        for count in counts[:problems]:
            bounds.append(bounds[-1] + count)
        even = counts[0] if len(set(counts[:problems])) == 1 and not counts[problems] else None
        return cls(order, bounds, ids, even)

    def sort(self, rows: Tensor) -> Tensor:
        """The rows [n, ...] gathered by problem; the same tensor where they lie so already."""
        return rows if self.order is None else rows.index_select(0, self.order)

    def sum(self, values: Tensor) -> Tensor:
        """Sums of the rows [n, ...] over each problem; [problems, ...]."""
        problems = len(self.bounds) - 1
        if self.size is not None and self.order is None:
            folded: Tensor = values.unflatten(0, (problems, self.size))
            return folded.sum(1)
        total = values.new_zeros(problems + 1, *values.shape[1:])
        total.index_add_(0, self.ids, values)
        return total[:problems]


class ProblemRows:
    """Follows the problem index of a capture through the shapes that a model gives its activations.

    An activation whose leading axes are those of the index, or their product, is in the order of the batch. Where a
    model gathers, repeats or cuts rows (mixtures of experts, logits of some positions only) the result is tagged with
    the problems of its rows; an operation that may have mixed them leaves a tag that refuses to be used.

    Args:
        index: LongTensor [B] (problem of each row) or [B, T] (of each token); -1 for none.
        problems: number of problems.
    """

    def __init__(self, index: Tensor, problems: int) -> None:
        self._index = index
        self._problems = problems
        self._lengths: list[int] = []
        self._groups: dict[tuple[torch.device, int, int], Groups] = {}

    def spread(self, index: Tensor) -> Tensor:
        """Look-up indices with the batch's axes in front: positions that all rows share are repeated for each row.

        [T] and [1, T] become [B, T]; others stay as they are.
        """
        lengths = self._lengths if self._index.ndim == 1 else [self._index.shape[1]]
        shared = index.ndim == 1 or (index.ndim == 2 and len(index) == 1)
        if shared and index.shape[-1] in lengths and not self._same(index):
            return index.expand(len(self._index), index.shape[-1])
        return index

    def _same(self, index: Tensor) -> bool:
        if not self.leads(index.shape):
            return False
        if index.ndim == 1 and len(index) in self._lengths:
            raise SketchError(
                f"capture cannot tell whether look-up indices of shape {tuple(index.shape)} are one a row or one a "
                "position, since the batch has as many rows as positions; give the indices as [B, T], or another number "
                "of rows."
            )
        return True

    def groups(self, activation: Tensor, features: int, what: str) -> Groups:
        """The groups of the rows of `activation`, all axes but the last `features` taken as rows.

        Raises:
            SketchError: it cannot be told which problem a row belongs to; `what` names the parameter in the message.
        """
        tag = getattr(activation, _TAG, None)
        rows = activation.shape[: activation.ndim - features].numel()
        if tag is None:
            tag = self._of_shape(activation, features)
        if tag is None or tag is UNKNOWN or rows % max(1, tag.numel()):
            raise SketchError(
                f"{what} is used on an activation of shape {tuple(activation.shape)}, and capture cannot tell which "
                f"problem its rows belong to (problem_index has shape {tuple(self._index.shape)}). Keep the axes of the "
                "batch in front, give problem_index as [B] for rows that stay whole, or sketch this model problem by "
                "problem with from_grads()."
            )
        return self._grouped(tag, rows)

    def leads(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape has the batch's axes in front."""
        return tuple(shape[: self._index.ndim]) == tuple(self._index.shape)

    def _grouped(self, tag: Tensor, rows: int) -> Groups:
        repeats = rows // max(1, tag.numel())
        base = tag is self._index
        key = (tag.device, rows, repeats)
        if base and key in self._groups:
            return self._groups[key]
        groups = Groups.of(tag.flatten().repeat_interleave(repeats), self._problems)
        if base:
            self._groups[key] = groups
        return groups

    def _of_shape(self, activation: Tensor, features: int) -> Any:
        shape, index = activation.shape, self._index
        if index.device != activation.device:
            index = self._index = self._index.to(activation.device)
        leading = activation.ndim - features
        if leading >= index.ndim and self.leads(shape):
            if leading >= 2 and index.ndim == 1:
                self._remember(shape[1])
            return index
        if leading >= 1 and index.ndim == 2 and shape[0] == index.numel():
            return index
        flat = [length for length in self._lengths if shape[0] == len(index) * length]
        return index if leading >= 1 and index.ndim == 1 and flat else None

    def _remember(self, length: int) -> None:
        if length not in self._lengths:
            self._lengths.append(length)

    # Following rows through the operations that move them.

    def follow(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Tag the result of an operation where its rows do not lie as the batch's do."""
        if func in DESTINATION:
            tag = getattr(args[0], _TAG, None)
        elif func in JOINS:
            tag = self._joined(*args, result=result, **kwargs)
        elif func in MOVES and args and isinstance(args[0], Tensor):
            tag = self._moved(func, args[0], args, kwargs, result)
        else:
            tags = [t for a in flat(args) if (t := getattr(a, _TAG, None)) is not None]
            if not tags:
                return
            tag = tags[0] if func in ROWWISE else self._mixed(tags, result)
        for out in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(out, Tensor) and out.is_floating_point():
                self._put(out, tag)

    def copy(self, source: Tensor, result: Tensor) -> None:
        """Give `result` the tag of `source`: its rows lie in the same way."""
        self._put(result, getattr(source, _TAG, None))

    def _put(self, out: Tensor, tag: Any) -> None:
        if isinstance(tag, Tensor) and tuple(out.shape[: tag.ndim]) != tuple(tag.shape):
            tag = UNKNOWN
        if tag is self._index:
            tag = None
        if tag is not None or hasattr(out, _TAG):
            setattr(out, _TAG, tag)

    def _moved(self, func: Any, source: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        tag = getattr(source, _TAG, None)
        if tag is UNKNOWN:
            return tag
        if tag is None and keeps_order(func) and self._recognised(result):
            return None
        before = self._base_tag(source) if tag is None else tag
        if before is None:
            return None
        try:
            after = MOVES[func](before, source, result, *args[1:], **kwargs)
        except (TypeError, ValueError, IndexError, RuntimeError):
            return UNKNOWN
        if after is before:
            return tag
        after = self._plain(after)
        if isinstance(after, Tensor) and (tag is None or hasattr(tag, _REARRANGED)):
            after = after.view_as(after)  # so that a mark is on this tag alone
            if rearranges(func, source, result) and after.numel() >= before.numel():
                setattr(after, _REARRANGED, True)
        return after

    def _plain(self, tag: Any) -> Any:
        """None for a tag that says the rows lie as the batch's do."""
        index = self._index
        if not isinstance(tag, Tensor) or tag.ndim == 0:
            return tag
        if (tag.shape, tag.stride(), tag.data_ptr()) == (index.shape, index.stride(), index.data_ptr()):
            return None
        if self.leads(tag.shape):
            return None if bool((tag == index.reshape(*index.shape, *(1,) * (tag.ndim - index.ndim))).all()) else tag
        known = tag.numel() == index.numel() if index.ndim == 2 else len(tag) in [len(index) * n for n in self._lengths]
        if tag.ndim > 1 or not known:
            return tag
        return None if torch.equal(tag, index.flatten().repeat_interleave(len(tag) // index.numel())) else tag

    def _mixed(self, tags: list[Any], result: Any) -> Any:
        """The tag after an operation that is not known to keep rows apart, such as attention.

        Where axes had only moved, as in front of an attention, the result is taken for one by its shape; unless that
        could be mistaken for the batch's.
        """
        if not all(hasattr(t, _REARRANGED) for t in tags):
            return UNKNOWN
        return UNKNOWN if any(self._recognised(out) for out in flat([result])) else None

    def _recognised(self, out: Any) -> bool:
        """Whether a result would be taken for one in the order of the batch."""
        return isinstance(out, Tensor) and out.ndim > 0 and self._of_shape(out, 1 if out.ndim > 1 else 0) is not None

    def _joined(self, tensors: Any, dim: int = 0, *, result: Tensor) -> Any:
        tensors = [t for t in tensors if t.numel()]  # a cache that holds nothing yet
        tags = [getattr(t, _TAG, None) for t in tensors]
        if any(tag is UNKNOWN for tag in tags):
            return UNKNOWN
        if all(t is None for t in tags) and dim % result.ndim >= self._index.ndim:
            return None
        known = [self._base_tag(t) if tag is None else tag for t, tag in zip(tensors, tags, strict=True)]
        found = [t for t in known if t is not None]
        if len(found) < len(known):
            return None if all(t is None for t in tags) else UNKNOWN
        return self._plain(joined(found, result, dim))

    def _base_tag(self, source: Tensor) -> Tensor | None:
        if not source.is_floating_point() or source.ndim == 0:
            return None
        tag: Tensor | None = self._of_shape(source, 1 if source.ndim > 1 else 0)
        if tag is not None and source.shape[: tag.ndim] != tag.shape:
            tag = tag.flatten().repeat_interleave(len(source) // tag.numel())
        return tag
