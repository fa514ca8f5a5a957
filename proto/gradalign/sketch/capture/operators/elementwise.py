"""Captured uses in which a parameter meets an activation element by element or by windows: norms, convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from torch import Tensor

from gradalign.sketch.capture.operators.functions import Broadcast, Convolution, Lookup
from gradalign.sketch.capture.operators.tracker import Tracker, in_autocast, name_of, refused
from gradalign.sketch.capture.rows.followed import flat, writes
from gradalign.sketch.capture.rows.tags import CONSTANT

__all__ = ["MEETINGS", "as_activation", "beside_constants", "elementwise"]

_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]
_T = torch.Tensor


def as_activation(tracker: Tracker, func: Any, x: Tensor, value: Tensor, *, beside: int | None = None) -> Tensor:
    """A tracked value in the shape in which it meets an activation; or stands beside it, along an axis."""
    made = tracker.find(value)
    meeting = torch.broadcast_shapes(x.shape, value.shape) if beside is None else tuple(value.shape)
    if made is not None and made.base is not None:
        if made.picked is None:
            value = made.base
        elif made.picked.ndim == 1 or made.picked.shape == x.shape[:-1]:
            return _picked_rows(tracker, func, x, made.base, made.picked)
    shape = tuple(value.shape)
    while shape and shape[0] == 1:
        shape = shape[1:]
    rows = min(x.ndim - len(shape), x.ndim if beside is None else beside)
    if rows < 1 or value.ndim > x.ndim:
        raise refused(tracker, func, value)
    groups = tracker.rows.groups(x, x.ndim - rows, name_of(tracker, value))
    return Broadcast.apply(tracker.tapped(value), meeting, tracker.recorder(value), groups, rows)  # type: ignore[no-any-return, no-untyped-call]


def _picked_rows(tracker: Tracker, func: Any, x: Tensor, base: Tensor, index: Tensor) -> Tensor:
    """Rows that were picked of a matrix, one for each row of an activation."""
    if base.ndim != 2 or index.shape != x.shape[:-1]:
        raise refused(tracker, func, base)
    groups = tracker.rows.groups(x, 1, name_of(tracker, base))
    index = torch.where(index < 0, index + len(base), index)
    return Lookup.apply(index, tracker.tapped(base), tracker.recorder(base), groups, -1)  # type: ignore[no-any-return, no-untyped-call]


def beside_constants(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> bool:
    """Whether a tracked value meets nothing but constants in a call, and keeps its shape.

    The result is then of the parameter alone, too.
    """
    tensors = [a for a in flat((*args, *kwargs.values())) if isinstance(a, Tensor)]
    tracked = [t for t in tensors if tracker.find(t) is not None]
    if len(tracked) != 1 or writes(func) or "out" in kwargs:
        return False
    others = [t for t in tensors if t is not tracked[0]]
    return all(_is_constant(tracker, t) for t in others) and tracked[0].shape == torch.broadcast_shapes(
        *(t.shape for t in tensors)
    )


def _is_constant(tracker: Tracker, value: Tensor) -> bool:
    """Whether a tensor is of no row, and not the first state of a recurrence."""
    rows = tracker.rows
    return (
        rows.tag(value) is CONSTANT
        and not value.requires_grad
        and (rows.is_input(value) or not rows.leads(value.shape))
    )


def elementwise(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    """Sums, products and the like of an activation and a tracked value, in either order."""
    if len(args) < 2 or "out" in kwargs or all(tracker.find(a) is not None for a in args[:2]):
        raise refused(tracker, func, args[0])
    at = 1 if tracker.find(args[1]) is not None else 0
    x = args[1 - at]
    if tracker.find(args[at]) is None:
        out: Tensor = func(*args, **kwargs)
        tracker.rows.follow(func, args, kwargs, out)
        return out
    met = as_activation(tracker, func, x, args[at])
    out = func(*((x, met) if at else (met, x)), *args[2:], **kwargs)
    tracker.rows.copy(x, out)
    return out


def _norm(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    layer = func in (F.layer_norm, torch.layer_norm)
    names = (
        ("input", "normalized_shape", "weight", "bias", "eps")
        if layer
        else ("input", "normalized_shape", "weight", "eps")
    )
    given = dict(zip(names, args, strict=False)) | kwargs
    x, shape = given["input"], given["normalized_shape"]
    eps = {"eps": given["eps"]} if given.get("eps") is not None else {}
    out = F.layer_norm(x, shape, **eps) if layer else F.rms_norm(x, shape, **eps)
    tracker.rows.copy(x, out)
    for step, part in ((torch.mul, given.get("weight")), (torch.add, given.get("bias"))):
        if part is not None:
            out = elementwise(tracker, step, (out, part), {})
    return out


def _cat(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    """Values that were expanded to the rows of an activation and are set beside it, as attention sinks are."""

    def call(tensors: Any, dim: int = 0) -> Tensor:
        x = next((t for t in tensors if tracker.find(t) is None), None)
        tracked = [t for t in tensors if tracker.find(t) is not None]
        made = [tracker.find(t) for t in tracked]
        if x is None or dim % x.ndim == 0 or any(m is None or m.base is None or m.picked is not None for m in made):
            raise refused(tracker, func, tracked[0])
        met = {id(t): as_activation(tracker, func, x, t, beside=dim % x.ndim) for t in tracked}
        out = torch.cat([met.get(id(t), t) for t in tensors], dim)
        tracker.rows.follow(func, ([x for _ in tensors], dim), {}, out)
        return out

    return call(*args, **kwargs)


def _conv(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, args, strict=False)) | kwargs
    x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
    if tracker.find(x) is not None or x.ndim != weight.ndim or isinstance(given.get("padding"), str):
        raise refused(tracker, func, x if tracker.find(x) is not None else weight if tracker.find(weight) else bias)
    x, weight, bias = in_autocast(tracker, x, weight, bias)
    if tracker.find(weight) is None:
        out = func(x, weight, **given)
    else:
        groups = tracker.rows.groups(x, x.ndim - 1, name_of(tracker, weight))
        out = Convolution.apply(x, tracker.tapped(weight), tracker.recorder(weight), groups, func, given)  # type: ignore[no-untyped-call]
    tracker.rows.copy(x, out)
    if bias is None:
        return out  # type: ignore[no-any-return]
    column, found = (-1, *(1,) * (x.ndim - 2)), tracker.find(bias)
    if found is not None:
        bias = tracker.track(tracker.tapped(bias).view(column), found.then(_T.view, (bias, column), {}, bias, 0))
        return elementwise(tracker, _T.add_, (out, bias), {})
    added: Tensor = out + bias.view(column)
    tracker.rows.copy(x, added)
    return added


_ELEMENTWISE = {
    getattr(owner, name)
    for owner in (_T, torch)
    for name in [
        "add", "add_", "div", "div_", "mul", "mul_", "sub", "sub_", "true_divide", "multiply", "subtract",
        "__add__", "__radd__", "__iadd__", "__mul__", "__rmul__", "__imul__", "__sub__", "__rsub__", "__isub__",
        "__truediv__", "__rtruediv__", "__itruediv__", "__rdiv__",
    ]
    if hasattr(owner, name)
}  # fmt: skip
MEETINGS: dict[Any, Callable[[Tracker, Any, _Args, _Kwargs], Any]] = {
    F.layer_norm: _norm,
    F.rms_norm: _norm,
    torch.rms_norm: _norm,
    torch.cat: _cat,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _conv),
    **dict.fromkeys(_ELEMENTWISE, elementwise),
}
