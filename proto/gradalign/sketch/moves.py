"""How operations move the rows of an activation, as seen from the problems those rows belong to.

A tag is a LongTensor with the problem of each row, in the shape of the leading axes of an activation. A move gets the
tag before the operation, the operand, the result and the operation's further arguments, and gives the tag after it:
None where the rows lie as those of the batch, `UNKNOWN` where it cannot tell.
"""
# ruff: noqa: ARG001 - all moves share one signature

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["DESTINATION", "MOVES", "ROWWISE", "UNKNOWN", "flat", "keeps_order"]

UNKNOWN: Final = object()


def flat(values: Any) -> list[Any]:
    """The values with the lists and tuples among them opened, one level deep."""
    found: list[Any] = []
    for value in values:
        found.extend(value if isinstance(value, (tuple, list)) else (value,))
    return found


def _getitem(tag: Tensor, source: Tensor, result: Tensor, key: Any) -> Any:
    if isinstance(key, list):
        key = torch.tensor(key, device=tag.device)
    if isinstance(key, Tensor) and key.ndim == 1:
        return tag[key]
    keys = key if isinstance(key, tuple) else (key,)
    if any(not isinstance(k, (slice, int, type(None), type(Ellipsis))) for k in keys):
        return UNKNOWN
    whole = tag.reshape(*tag.shape, *(1,) * (source.ndim - tag.ndim)).expand(source.shape)[key]
    leading = min(tag.ndim, whole.ndim)
    return whole[(slice(None),) * leading + (0,) * (whole.ndim - leading)]


def _select(tag: Tensor, source: Tensor, result: Tensor, dim: int, index: Tensor) -> Any:
    return tag[index] if dim == 0 else (tag if dim < 0 or dim >= tag.ndim else UNKNOWN)


def _repeat(tag: Tensor, source: Tensor, result: Tensor, repeats: Any, dim: int | None = None) -> Any:
    return tag.repeat_interleave(repeats, dim=0) if dim == 0 else UNKNOWN


def _view(tag: Tensor, source: Tensor, result: Tensor, *shape: Any, **kwargs: Any) -> Any:
    if tuple(result.shape[: tag.ndim]) == tuple(tag.shape):
        return tag
    size, leading = 1, 0
    while leading < result.ndim and size < tag.numel():
        size, leading = size * result.shape[leading], leading + 1
    if size == tag.numel():
        return tag.reshape(result.shape[:leading])
    return tag.flatten().repeat_interleave(len(result) // tag.numel()) if len(result) % tag.numel() == 0 else UNKNOWN


def _sum(tag: Tensor, source: Tensor, result: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(dim, int):
        return UNKNOWN
    if dim % source.ndim >= tag.ndim:
        return tag
    first = tag.select(dim, 0)
    return first if bool((tag == first.unsqueeze(dim)).all()) else UNKNOWN


def _swap(tag: Tensor, source: Tensor, result: Tensor, *dims: Any, **kwargs: Any) -> Any:
    given = [d % source.ndim for d in (flat(dims) or list(kwargs.values()))]
    order = list(range(source.ndim))
    if len(given) == source.ndim and source.ndim != 2:
        order = given
    else:
        a, b = given
        order[a], order[b] = order[b], order[a]
    # Heads move in front of tokens and back again in every attention; the rows of the batch stay where they are.
    return None if order[0] == 0 and tag.ndim == 2 else (tag if order[: tag.ndim] == [0] else UNKNOWN)


def _lost(tag: Tensor, source: Tensor, result: Tensor, *args: Any, **kwargs: Any) -> Any:
    return UNKNOWN


def keeps_order(func: Callable[..., Any]) -> bool:
    """Whether rows that lie as the batch's do still lie so, if the result has the batch's axes at all."""
    return MOVES[func] in (_view, _sum)


_T = torch.Tensor
MOVES: dict[Any, Callable[..., Any]] = {
    _T.__getitem__: _getitem,
    _T.index_select: _select,
    torch.index_select: _select,
    _T.repeat_interleave: _repeat,
    torch.repeat_interleave: _repeat,
    _T.view: _view,
    _T.reshape: _view,
    torch.reshape: _view,
    _T.sum: _sum,
    torch.sum: _sum,
    _T.transpose: _swap,
    torch.transpose: _swap,
    _T.permute: _swap,
    torch.permute: _swap,
    _T.mean: _sum,
    torch.mean: _sum,
    **{getattr(_T, name): _lost for name in ("repeat", "tile", "flip", "roll", "t", "swapaxes", "gather")},
    **{getattr(torch, name): _lost for name in ("tile", "flip", "roll", "t", "swapaxes", "gather")},
}
DESTINATION = {_T.index_add_, _T.index_add, torch.index_add, _T.scatter_add_, _T.index_copy_, _T.__setitem__}
_ROWWISE_NAMES = [
    "abs",
    "add",
    "add_",
    "chunk",
    "clamp",
    "clamp_",
    "clone",
    "contiguous",
    "div",
    "div_",
    "dropout",
    "exp",
    "float",
    "bfloat16",
    "half",
    "double",
    "gelu",
    "mul",
    "mul_",
    "neg",
    "relu",
    "relu_",
    "sigmoid",
    "silu",
    "softmax",
    "split",
    "sub",
    "sub_",
    "tanh",
    "to",
    "type_as",
    "unbind",
    "unsqueeze",
    "__add__",
    "__radd__",
    "__iadd__",
    "__mul__",
    "__rmul__",
    "__imul__",
    "__neg__",
    "__sub__",
    "__rsub__",
    "__truediv__",
    "masked_fill",
    "rsqrt",
    "pow",
    "square",
]
ROWWISE = {
    getattr(owner, name)
    for owner in (_T, torch, torch.nn.functional)
    for name in _ROWWISE_NAMES
    if hasattr(owner, name)
}
