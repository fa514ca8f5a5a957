"""Rules of operations that pick rows, or write them, at an index or a mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradalign.sketch.capture.rows.elements import beside, pointwise
from gradalign.sketch.capture.rows.followed import Call, combined, operands
from gradalign.sketch.capture.rows.layouts import viewed
from gradalign.sketch.capture.rows.tags import CONSTANT, FREE, Followed, Lost, Tag, spread_out, together

__all__ = [
    "copied",
    "gathered",
    "index_added",
    "index_selected",
    "indexed",
    "looked_up",
    "masked",
    "picked_out",
    "scattered",
    "set_at",
]


def index_selected(call: Call) -> Tag:
    """index_select: the ids at an index along one axis."""
    tag, dim, index = call.tag(call.args[0]), call.get(1, "dim"), call.get(2, "index")
    if not isinstance(tag, Followed) or dim % call.args[0].ndim not in tag.axes:
        return tag
    return Followed(tag.ids.index_select(tag.axes.index(dim % call.args[0].ndim), index.flatten()), tag.axes)


def indexed(call: Call) -> Tag:
    """`x[key]`: the ids at the same key."""
    source, key = call.args
    tag = call.tag(source)
    if not isinstance(tag, Followed):
        return tag
    keys = key if isinstance(key, tuple) else (key,)
    if all(isinstance(k, (slice, int, type(None), type(Ellipsis))) for k in keys):
        return viewed(call)  # type: ignore[no-any-return]
    keys = tuple(k for k in _explicit(keys, source.ndim))
    used = sum(_taken(k) for k in keys)
    leading = max(used, tag.axes[-1] + 1 if tag.axes else 0)
    ids = spread_out(tag, source.shape[:leading])[keys]
    return together(ids, range(ids.ndim), Followed(tag.ids, tag.axes))


def _explicit(keys: Sequence[Any], axes: int) -> Iterable[Any]:
    """The keys with slices in place of an ellipsis."""
    for key in keys:
        if key is Ellipsis:
            yield from [slice(None)] * (axes - sum(_taken(k) for k in keys))
        else:
            yield key


def _taken(key: Any) -> int:
    """How many axes of the source a key stands for."""
    if key is None or key is Ellipsis or isinstance(key, bool):
        return 0
    return key.ndim if isinstance(key, Tensor) and key.dtype in (torch.bool, torch.uint8) else 1


def masked(call: Call) -> Tag:
    """masked_select: the elements at a mask."""
    source, mask = call.args[0], call.get(1, "mask")
    tag = call.tag(source)
    if not isinstance(tag, Followed):
        return tag
    ids = torch.masked_select(spread_out(tag, source.shape), mask)
    return together(ids, range(ids.ndim), Followed(tag.ids, tag.axes))


def gathered(call: Call) -> Tag:
    """Elements picked along one axis, by an index that lies as the source does along the others."""
    dim = call.get(1, "dim") % max(1, call.out.ndim)
    tags = [call.tag(t) for t in operands(call)]
    for tag in tags:
        if isinstance(tag, Followed) and dim in tag.axes:
            return call.lost()
    return combined(call, tags)


def index_added(call: Call) -> Tag:
    """Rows of a source written or added to the rows of a destination at an index."""
    into, dim, index, source = call.args[0], call.get(1, "dim"), call.get(2, "index"), call.get(3, "source", "tensor")
    mine, its = call.tag(into), call.tag(source)
    if isinstance(mine, Lost) or isinstance(its, Lost):
        return mine if isinstance(mine, Lost) else its
    if not isinstance(its, Followed):
        return mine
    dim %= into.ndim
    axes = sorted({dim, *its.axes, *(mine.axes if isinstance(mine, Followed) else ())})
    before = _written_out(mine, into, axes)
    new = spread_out(its, source.shape, axes)
    at = axes.index(dim)
    after = before.clone().index_copy_(at, index, new.contiguous())
    kept = bool(((before == FREE) | (before == after)).all()) or "copy" in call.name
    if not kept or not torch.equal(after.index_select(at, index), new):
        return call.lost()
    if isinstance(mine, Followed) and torch.equal(before, after):
        return mine
    return together(after, axes, Followed(its.ids, its.axes))


def _written_out(tag: Tag, tensor: Tensor, axes: Sequence[int]) -> Tensor:
    if isinstance(tag, Followed):
        return spread_out(tag, tensor.shape, axes)
    return torch.full([tensor.shape[a] for a in axes], FREE, device=tensor.device)


def set_at(call: Call) -> Tag:
    """`x[key] = value`, and its likes: the ids of the value are written into those of the destination."""
    into, key, value = call.args[0], call.get(1, "indices", "mask"), call.get(2, "values", "source")
    mine, its = call.tag(into), call.tag(value) if isinstance(value, Tensor) else CONSTANT
    if isinstance(mine, Lost) or isinstance(its, Lost):
        return mine if isinstance(mine, Lost) else its
    if not isinstance(its, Followed):
        return mine
    before = _written_out(mine, into, range(into.ndim))
    new, after = spread_out(its, value.shape), before.clone()
    if call.name == "masked_scatter":
        return together(after.masked_scatter_(key, new), range(into.ndim), Followed(its.ids, its.axes))
    key = tuple(key) if isinstance(key, (tuple, list)) and "index_put" in call.name else key
    after[key] = new
    adds = call.get(3, "accumulate", default=False)
    if not bool((after[key] == new).all()) or (adds and not bool(((before == FREE) | (before == after)).all())):
        return call.lost()
    return together(
        after, range(into.ndim), its if isinstance(mine, Followed) and mine.same(its) else Followed(its.ids, its.axes)
    )


def copied(call: Call) -> Tag:
    """All of a destination is written over."""
    into, source = call.args[0], call.get(1, "src", "other")
    tag = beside(call, source, into.ndim) if isinstance(source, Tensor) else CONSTANT
    return call.tag(into) if tag is CONSTANT else tag


def picked_out(call: Call) -> Any:
    """`where`: of one argument the places of what is true, which lie in no order of rows."""
    return pointwise(call) if len(operands(call)) + len(call.args) > 2 else scattered(call)


def scattered(call: Call) -> Tag:
    """The places of what is true, which lie in no order of rows."""
    tag = call.tag(call.args[0])
    return call.lost() if isinstance(tag, Followed) and tag.axes else tag


def looked_up(call: Call) -> Tag:
    """Rows of a table that all problems share."""
    index, table = call.get(0, "input"), call.get(1, "weight")
    return call.lost() if isinstance(call.tag(table), Followed) else call.tag(index)
