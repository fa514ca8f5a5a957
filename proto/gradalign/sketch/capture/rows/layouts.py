"""Rules of operations that lay rows out anew: views, folds, repeats and joins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from gradalign.sketch.capture.rows.followed import Call, flat
from gradalign.sketch.capture.rows.tags import CONSTANT, FREE, Followed, Lost, Tag, moved, spread_out, together

__all__ = [
    "cut",
    "interleaved",
    "joined",
    "repeated",
    "reshaped",
    "stacked",
    "viewed",
]


def viewed(call: Call) -> Any:
    """The same operation on the ids, which are a view that takes no memory; so strides say where the rows went."""
    source, tag = call.args[0], call.tag(call.args[0])
    if not isinstance(tag, Followed) or not tag.axes:
        return tag
    key = call.key(tag, source)
    known = call.memo.get(key) if key else None
    if known is not None:
        return known[1]
    result = call.func(spread_out(tag, source.shape), *call.args[1:], **call.kwargs)
    many = isinstance(result, (tuple, list))
    tags = [together(r, range(r.ndim), tag, view=True) for r in (result if many else [result])]
    found = tags if many else tags[0]
    if key and tag.stable:
        call.memo[key] = tag, found
    return found


def cut(at: int, default: int | None, *names: str) -> Callable[[Call], Any]:
    """Pieces along an axis, which are views of it."""

    def rule(call: Call) -> Any:
        tag = call.tag(call.args[0])
        across = isinstance(tag, Followed) and set(tag.axes) & set(call.dims(at, default, *names))
        return viewed(call) if across else tag

    return rule


def reshaped(call: Call) -> Tag:
    """Axes are folded or unfolded; only the blocks of axes that the rows lie in are written out."""
    source, tag = call.args[0], call.tag(call.args[0])
    out = call.out
    if not isinstance(tag, Followed) or not tag.axes:
        return tag
    leading = tag.axes[-1] + 1
    if source.shape[:leading] == out.shape[:leading]:
        return tag
    key = (call.name, id(tag.ids), tag.axes, tag.scores, source.shape, out.shape)
    if key in call.memo:
        known: Tag = call.memo[key][1]
        return known
    if not source.numel() or source.numel() != out.numel():
        return call.lost()
    before, after, axes = [], [], []
    for mine, its in _blocks(source.shape, out.shape):
        if set(mine) & set(tag.axes):
            before += mine
            after += [out.shape[a] for a in its]
            axes += its
    found = together(spread_out(tag, source.shape, before).reshape(after), axes, tag)
    if tag.stable:
        call.memo[key] = tag, found
    return found


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """The smallest runs of axes of two shapes that hold as many elements."""
    i = j = 0
    while i < len(before) or j < len(after):
        mine, its = list(range(i, min(i + 1, len(before)))), list(range(j, min(j + 1, len(after))))
        i, j = i + len(mine), j + len(its)
        while (mine_size := prod(before[a] for a in mine)) != (its_size := prod(after[a] for a in its)):
            if mine_size < its_size:
                mine.append(i)
                i += 1
            else:
                its.append(j)
                j += 1
        yield mine, its


def repeated(call: Call) -> Tag:
    """Tensor.repeat: all of it, several times along each axis."""
    tag, times = call.tag(call.args[0]), flat(call.args[1:])
    if not isinstance(tag, Followed):
        return tag
    tag = tag.shifted(len(times) - call.args[0].ndim)
    again = [times[a] for a in tag.axes]
    return tag if set(again) <= {1} else Followed(tag.ids.repeat(*again), tag.axes, scores=tag.scores)


def interleaved(call: Call) -> Tag:
    """repeat_interleave along one axis."""
    tag, dim = call.tag(call.args[0]), call.get(2, "dim")
    if not isinstance(tag, Followed) or dim is None:
        return call.lost() if isinstance(tag, Followed) else tag
    dim %= call.args[0].ndim
    if dim not in tag.axes:
        return tag
    return Followed(tag.ids.repeat_interleave(call.get(1, "repeats"), tag.axes.index(dim)), tag.axes)


def joined(call: Call) -> Tag:
    """cat: the ids of all pieces, one behind the other."""
    return _concatenated(call, list(call.get(0, "tensors")), call.get(1, "dim", default=0), new=False)


def stacked(call: Call) -> Tag:
    """stack: the ids of all pieces along a new axis."""
    return _concatenated(call, list(call.get(0, "tensors")), call.get(1, "dim", default=0), new=True)


def _concatenated(call: Call, tensors: list[Tensor], dim: int, *, new: bool) -> Tag:
    tensors = [t for t in tensors if t.numel()] if not new else tensors  # a cache that holds nothing yet
    dim %= call.out.ndim
    tags = [call.tag(t) for t in tensors]
    lost = next((t for t in tags if isinstance(t, Lost)), None)
    known = [t for t in tags if isinstance(t, Followed)]
    if lost or not known:
        return lost or CONSTANT
    if new:
        known = [moved(t, [a + (a >= dim) for a in range(call.out.ndim - 1)]) for t in known]
    if all(t.same(known[0]) for t in known[1:]) and dim not in known[0].axes and (len(known) == len(tags) or not new):
        return known[0]
    axes = sorted({dim, *(a for t in known for a in t.axes)})
    pieces, found = [], iter(known)
    for tensor, tag in zip(tensors, tags, strict=True):
        shape = list(tensor.shape)
        shape[dim:dim] = [1] if new else []
        if isinstance(tag, Followed):
            pieces.append(spread_out(next(found), shape, axes))
        else:
            pieces.append(torch.full([shape[a] for a in axes], FREE, device=tensor.device))
    return together(torch.cat(pieces, axes.index(dim)), axes, Followed(known[0].ids, known[0].axes))
