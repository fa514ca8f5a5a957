"""Captured matrix products: linear layers in all their forms, and stacks of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from torch import Tensor

from gradalign.sketch.capture.operators.elementwise import as_activation, elementwise
from gradalign.sketch.capture.operators.functions import Product
from gradalign.sketch.capture.operators.tracker import Tracker, in_autocast, name_of, refused

__all__ = ["PRODUCTS"]

_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]
_T = torch.Tensor


def _product(tracker: Tracker, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *, plain: bool) -> Tensor:
    if tracker.find(x) is not None or weight.ndim != 2 or x.ndim < 2:
        raise refused(tracker, func, weight if tracker.find(weight) is not None else x)
    x, weight, bias = in_autocast(tracker, x, weight, bias)
    if tracker.find(weight) is None:
        out = torch.matmul(x, weight) if plain else F.linear(x, weight)
    else:
        groups = tracker.rows.groups(x, 1, name_of(tracker, weight))
        out = Product.apply(x, tracker.tapped(weight), tracker.recorder(weight), groups, plain)  # type: ignore[no-untyped-call]
    tracker.rows.copy(x, out)
    return out if bias is None else elementwise(tracker, _T.add_, (out, bias), {})


def _linear(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    def call(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's name
        return _product(tracker, func, input, weight, bias, plain=False)

    return call(*args, **kwargs)


def _matmul(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    if len(args) == 2 and not kwargs and args[0].ndim == args[1].ndim > 3:
        return _repeated(tracker, func, *args)
    if len(args) == 2 and not kwargs and args[0].ndim == args[1].ndim == 3:
        return _bmm(tracker, func, args, kwargs)
    if len(args) == 2 and not kwargs and tracker.find(args[1]) is None and args[1].ndim > 2:
        # weight @ x, of columns instead of rows
        return _turned(tracker, _product(tracker, func, _turned(tracker, args[1]), args[0], None, plain=False))
    if len(args) != 2 or kwargs or tracker.find(args[1]) is None:
        raise refused(tracker, func, args[0] if tracker.find(args[1]) is None else args[1])
    return _product(tracker, func, *args, None, plain=True)


def _turned(tracker: Tracker, x: Tensor) -> Tensor:
    turned = x.transpose(-1, -2)
    tracker.rows.follow(_T.transpose, (x, -1, -2), {}, turned)
    return turned


def _addmm(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    if len(args) != 3 or kwargs:
        raise refused(tracker, func, next(a for a in args if tracker.find(a) is not None))
    return _product(tracker, func, args[1], args[2], args[0], plain=True)


def _grouped_mm(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    given = dict(zip(("x", "weight", "offs"), args, strict=False)) | kwargs
    x, weight, offs = given["x"], given["weight"], given.get("offs")
    if tracker.find(weight) is None or offs is None or x.ndim != 2 or weight.ndim != 3 or given.get("bias") is not None:
        raise refused(tracker, func, weight if tracker.find(weight) is not None else x)
    return _by_expert(tracker, func, x, weight, offs.tolist(), plain=True)


def _bmm(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    """A batch of products with weights: one an expert, or one picked for each row."""
    if len(args) != 2 or kwargs or args[0].ndim != 3 or args[1].ndim != 3:
        raise refused(tracker, func, next(a for a in args if tracker.find(a) is not None))
    x, weight = args
    right = tracker.find(weight) is not None
    if not right:
        x, weight = weight, x
    made = tracker.find(weight)
    if tracker.find(x) is not None or made is None:
        raise refused(tracker, func, weight)
    if made.base is not None and made.picked is not None and made.base.ndim == 3 and x.shape[1 if right else 2] == 1:
        return _picked(tracker, func, x, made.base, made.picked, right=right)
    if not right:
        return _repeated(tracker, func, *args)
    if made.picked is not None and made.picked.ndim == 1:
        raise refused(tracker, func, weight)
    ends = [x.shape[1] * (expert + 1) for expert in range(len(x))]
    rows = x.flatten(0, 1)
    tracker.rows.follow(_T.flatten, (x, 0, 1), {}, rows)
    out = _by_expert(tracker, func, rows, weight, ends, plain=True)
    shaped: Tensor = out.unflatten(0, x.shape[:2])
    tracker.rows.copy(x, shaped)
    return shaped


def _repeated(tracker: Tracker, func: Any, one: Tensor, other: Tensor) -> Tensor:
    """A batch of products with a value that was expanded to an activation's rows, as queries that are learned."""
    x, value = (one, other) if tracker.find(one) is None else (other, one)
    made = tracker.find(value)
    if tracker.find(x) is not None or made is None or made.base is None or made.picked is not None:
        raise refused(tracker, func, value)
    if x.shape[:-2] != value.shape[:-2]:
        raise refused(tracker, func, value)
    met = as_activation(tracker, func, x, value, beside=x.ndim - 2)
    tracker.rows.copy(x, met)
    args = (met, other) if value is one else (one, met)
    out: Tensor = func(*args)
    tracker.rows.follow(func, args, {}, out)
    return out


def _baddbmm(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    """A batch of products with weights, and a bias for each of them, [E, 1, O]."""
    weighs = any(tracker.find(a) is not None for a in args[1:])
    if len(args) != 3 or kwargs or not weighs or args[0].ndim != 3 or args[0].shape[1] != 1:
        raise refused(tracker, func, next(a for a in (*args, *kwargs.values()) if tracker.find(a) is not None))
    (bias,) = in_autocast(tracker, args[0])
    out = _bmm(tracker, func, args[1:], kwargs)
    return _first_two(tracker, elementwise(tracker, _T.add, (_first_two(tracker, out), _first_two(tracker, bias)), {}))


def _first_two(tracker: Tracker, value: Tensor) -> Tensor:
    """A tensor with its first two axes swapped."""
    call, made = (value, 0, 1), tracker.find(value)
    if made is not None:
        return tracker.track(tracker.tapped(value).transpose(0, 1), made.then(_T.transpose, call, {}, value, 0))
    swapped = value.transpose(0, 1)
    tracker.rows.follow(_T.transpose, call, {}, swapped)
    return swapped


def _picked(tracker: Tracker, func: Any, x: Tensor, base: Tensor, experts: Tensor, *, right: bool) -> Tensor:
    """Each row times the weights of its expert: x [S, 1, I] @ base[experts] [S, I, O], or [S, O, I] @ x [S, I, 1]."""
    order = torch.argsort(experts, stable=True)
    flat = x.squeeze(1 if right else 2)
    tracker.rows.follow(_T.flatten, (x, 1, 2), {}, flat)
    rows = flat[order]
    tracker.rows.follow(_T.__getitem__, (flat, order), {}, rows)
    ends = torch.bincount(experts, minlength=len(base)).cumsum(0).tolist()
    out = _by_expert(tracker, func, rows, base, ends, plain=right)
    back = out[torch.argsort(order)].unsqueeze(1 if right else 2)
    tracker.rows.copy(x, back)
    return back


def _by_expert(tracker: Tracker, func: Any, x: Tensor, weight: Tensor, ends: list[int], *, plain: bool) -> Tensor:
    """Rows x [S, I], sorted by expert, times the weights of their experts; rows behind the last end give zeros."""
    made = tracker.find(weight)
    assert made is not None
    outs, start = [], 0
    for expert, (stop, part) in enumerate(zip(ends, tracker.tapped(weight).unbind(0), strict=True)):
        if stop > start:
            picked = tracker.track(part, made.then(_T.__getitem__, (weight, expert), {}, weight, 0))
            rows = x[start:stop]
            tracker.rows.follow(_T.__getitem__, (x, slice(start, stop)), {}, rows)
            outs.append(_product(tracker, func, rows, picked, None, plain=plain))
        start = max(start, stop)
    width = weight.shape[2 if plain else 1]
    outs.append(x.new_zeros(len(x) - start, width, dtype=outs[0].dtype if outs else x.dtype))
    out = torch.cat(outs)
    tracker.rows.copy(x, out)
    return out


PRODUCTS: dict[Any, Callable[[Tracker, Any, _Args, _Kwargs], Any]] = {
    F.linear: _linear,
    torch.baddbmm: _baddbmm,
    _T.baddbmm: _baddbmm,
    torch.addmm: _addmm,
    _T.addmm: _addmm,
    torch.bmm: _bmm,
    _T.bmm: _bmm,
    **{getattr(owner, name): _matmul for owner in (torch, _T) for name in ("matmul", "mm")},
    _T.__matmul__: _matmul,
}
for _grouped in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)):
    if _grouped is not None:
        PRODUCTS[_grouped] = _grouped_mm
