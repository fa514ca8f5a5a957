"""What is known of the rows of each tensor inside a capture, through views, writes and aliases."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import count as counting
from typing import Any, Final

import torch
from torch import Tensor, nn

from gradalign.sketch.capture.rows.tags import CONSTANT, FREE, Followed, Lost, Tag, spread_out, together

__all__ = ["RowTags"]

_BLOCKS = counting()
_INPUT: Final = object()  # no operation of the block made this tensor
_GROWN: Final = object()  # of no row, and of parameters: a constant that takes a gradient


class RowTags:
    """What is known of the rows of each tensor inside a capture, kept on the tensor.

    What the block did not make is an input: it lies in the order of the batch if its leading axes are those of the index, or
    their product, and is a constant otherwise.

    Args:
        index: LongTensor [B] (problem of each row) or [B, T] (of each token); -1 for none.
        constants: tensors that hold no rows whatever their shapes: the buffers of the model.
    """

    def __init__(self, index: Tensor, constants: Collection[Tensor] = ()) -> None:
        self._lengths: list[int] = []
        self._constants = {id(c): c for c in constants}
        block = next(_BLOCKS)
        # On a tensor: its tag; when it got it, in writes; what it is a detached alias of; the last write into its memory.
        self._tag, self._when = f"_gradalign_rows_{block}", f"_gradalign_when_{block}"
        self._alias, self._write = f"_gradalign_alias_{block}", f"_gradalign_write_{block}"
        self._writes = 0
        self._read_out = ""  # the call by which values of rows left torch
        self._mapped = False  # whether torch.vmap has seen rows, whose results come back without a tag
        self._started = _sequence()
        self.memo: dict[Any, Any] = {}
        self._place(index)

    def _place(self, index: Tensor) -> None:
        self._index = index
        self._base = together(index, range(index.ndim), Followed(index, tuple(range(index.ndim)), stable=True))
        self.memo.clear()

    @property
    def index(self) -> Tensor:
        """The problem of each row, LongTensor [B], or of each token, [B, T]; -1 for none."""
        return self._index

    @property
    def packed(self) -> bool:
        """Whether rows hold tokens of several problems."""
        return self._index.ndim == 2

    def tag(self, tensor: Tensor) -> Tag:
        """What is known of the rows of a tensor."""
        tag: Any = getattr(tensor, self._tag, _INPUT)
        if tag is _INPUT:
            return self._of_input(tensor)
        if self._writes and self._is_stale(tensor):
            return self._through_base(tensor)
        if tag is _GROWN:
            return CONSTANT
        if tag is CONSTANT and tensor.requires_grad and not tensor.is_leaf:
            return self._unseen(tensor)  # a function of its own wrote into it
        return tag  # type: ignore[no-any-return]

    def tag_before(self, tensor: Tensor) -> Tag:
        """What was known of the rows of a tensor before the call that has just written into it."""
        tag = getattr(tensor, self._tag, _INPUT)
        if tag is _INPUT:
            return CONSTANT if self._is_constant(tensor) else self._of_shape(tensor)
        return CONSTANT if tag is CONSTANT or tag is _GROWN else self.tag(tensor)

    def is_input(self, tensor: Tensor) -> bool:
        """Whether no operation of the block made this tensor."""
        return not hasattr(tensor, self._tag)

    def _of_input(self, tensor: Tensor) -> Tag:
        if self._is_constant(tensor):
            return CONSTANT
        if tensor.grad_fn is not None and tensor.grad_fn._sequence_nr() >= self._started:
            return self._unseen(tensor)
        tag = self._of_shape(tensor)
        if self._mapped and isinstance(tag, Followed) and tag.axes and tensor.dtype is not torch.bool:
            return Lost("torch.vmap")
        if self._read_out and isinstance(tag, Followed) and tag.axes:
            return Lost(self._read_out)
        return tag

    def _is_constant(self, tensor: Tensor) -> bool:
        return isinstance(tensor, nn.Parameter) or id(tensor) in self._constants

    @staticmethod
    def _unseen(tensor: Tensor) -> Lost:
        name = "" if tensor.grad_fn is None else tensor.grad_fn.name()
        return Lost(f"{name.removesuffix('Backward') or 'an operation'} (an operation that capture did not see)")

    def _of_shape(self, tensor: Tensor) -> Tag:
        shape, index = tensor.shape, self._index
        if index.device != tensor.device:
            self._place(index.to(tensor.device))
            index = self._index
        if self.leads(shape):
            if len(shape) > 1 and not self.packed:
                self._remember(shape[1])
            return self._base
        if not shape:
            return CONSTANT
        lengths = [1] if self.packed else self._lengths
        length = next((n for n in lengths if shape[0] == index.numel() * n and n), None)
        return CONSTANT if length is None else self._flattened(length)

    def _flattened(self, length: int) -> Followed:
        key = ("flat", length)
        if key not in self.memo:
            ids = self._index.flatten().repeat_interleave(length)
            self.memo[key] = self._base, together(ids, [0], Followed(ids, (0,), stable=True))
        found: Followed = self.memo[key][1]
        return found

    def _remember(self, length: int) -> None:
        if length not in self._lengths:
            self._lengths.append(length)

    def leads(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape has the batch's axes in front."""
        return tuple(shape[: self._index.ndim]) == tuple(self._index.shape)

    def _put(self, out: Tensor, tag: Tag) -> Tensor:
        setattr(out, self._tag, _GROWN if tag is CONSTANT and out.requires_grad else tag)
        if self._writes:
            setattr(out, self._when, self._writes)
        return out

    # Memory that several tensors share.

    def _written(self, into: Any, tag: Any) -> None:
        for out in into if isinstance(into, (tuple, list)) else (into,):
            before = self.tag_before(out)
            if before is tag or (isinstance(before, Followed) and isinstance(tag, Followed) and before.same(tag)):
                self._put(out, tag)
                continue
            self._writes += 1
            self._put(out, tag)
            owner, alias = out._base, getattr(out, self._alias, None)
            if owner is not None:
                self._put(owner, self._around(owner, out, tag))
            setattr(out if owner is None else owner, self._write, self._writes)
            source = alias() if alias is not None else None
            if source is not None:
                self._written(source, tag)

    def _around(self, owner: Tensor, part: Tensor, tag: Tag) -> Tag:
        """The tag of a tensor, a view of which was written into."""
        before = self.tag_before(owner)
        if isinstance(before, Lost) or not isinstance(tag, Followed):
            return before if not isinstance(tag, Lost) else tag
        if not owner.is_contiguous():
            return Lost("a write into a view")
        ids = torch.full(owner.shape, FREE, device=owner.device)
        if isinstance(before, Followed):
            ids.copy_(spread_out(before, owner.shape))
        start = part.storage_offset() - owner.storage_offset()
        ids.as_strided(part.shape, part.stride(), start).copy_(spread_out(tag, part.shape))
        return together(ids, range(ids.ndim), Followed(tag.ids, tag.axes, tag.stable))

    def _is_stale(self, tensor: Tensor) -> bool:
        owner = tensor._base
        if owner is None:
            return False
        wrote: int = getattr(owner, self._write, 0)
        return wrote > getattr(tensor, self._when, 0)

    def _through_base(self, tensor: Tensor) -> Tag:
        owner = tensor._base
        assert owner is not None
        tag = self.tag(owner)
        if not isinstance(tag, Followed):
            return tag
        if not owner.is_contiguous():
            return Lost("a write into a view")
        ids = spread_out(tag, owner.shape).contiguous()
        ids = ids.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() - owner.storage_offset())
        found = together(ids, range(ids.ndim), Followed(tag.ids, tag.axes, tag.stable))
        self._put(tensor, found)
        return found


def _sequence() -> int:
    """The number of the next operation that autograd will record in this thread."""
    with torch.enable_grad():
        edge = torch.zeros(0, requires_grad=True).view(0).grad_fn
    assert edge is not None
    number: int = edge._sequence_nr()
    return number
