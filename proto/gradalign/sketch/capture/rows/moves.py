"""How operations move the rows of an activation, as seen from the problems those rows belong to.

A tag is a LongTensor with the problem of each row, in the shape of the leading axes of an activation. A move gets the
tag before the operation, the operand, the result and the operation's further arguments, and gives the tag after it:
`UNKNOWN` where it cannot tell.
"""
# ruff: noqa: ARG001 - all moves share one signature

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any, Final

import torch
from torch import Tensor

__all__ = ["DESTINATION", "JOINS", "MOVES", "ROWWISE", "UNKNOWN", "flat", "joined", "keeps_order", "rearranges"]

UNKNOWN: Final = object()


def flat(values: Any) -> list[Any]:
    """The values with the lists and tuples among them opened, one level deep."""
    found: list[Any] = []
    for value in values:
        found.extend(value if isinstance(value, (tuple, list)) else (value,))
    return found


def _widened(tag: Tensor, shape: Sequence[int], axes: int) -> Tensor:
    """The tag with at least so many of the leading axes of an activation of that shape."""
    if axes <= tag.ndim:
        return tag
    return tag.reshape(*tag.shape, *(1,) * (axes - tag.ndim)).expand(*tag.shape, *shape[tag.ndim : axes])


def _trimmed(tag: Tensor) -> Tensor:
    """The tag without the last axes along which it does not change."""
    while tag.ndim > 1 and (tag.stride(-1) == 0 or tag.shape[-1] == 1):
        tag = tag[..., 0]
    return tag


def _getitem(tag: Tensor, source: Tensor, result: Tensor, key: Any) -> Any:
    keys = list(key) if isinstance(key, tuple) else [key]
    keys = [torch.tensor(k, device=tag.device) if isinstance(k, list) else k for k in keys]
    many = [k for k in keys if isinstance(k, Tensor) and k.ndim]
    if len(many) > 1 or any(not isinstance(k, (slice, int, type(None), type(Ellipsis), Tensor)) for k in keys):
        return UNKNOWN
    whole = _widened(tag, source.shape, max([k.ndim for k in many if k.dtype == torch.bool], default=1))
    return whole[tuple(_leading(keys, source.ndim, whole.ndim))]


def _leading(keys: Sequence[Any], ndim: int, leading: int) -> Iterator[Any]:
    """Those of the keys of a tensor of `ndim` axes that concern its first `leading`."""
    taken = [_axes_taken(k) for k in keys]
    axis = 0
    for key, axes in zip(keys, taken, strict=True):
        if key is Ellipsis:
            key = slice(None)  # noqa: PLW2901
            for _ in range(min(leading, axis + ndim - sum(taken)) - axis):
                yield key
            axis += ndim - sum(taken)
        elif axis < leading:
            yield key
            axis += axes


def _axes_taken(key: Any) -> int:
    if key is None or key is Ellipsis:
        return 0
    return key.ndim if isinstance(key, Tensor) and key.dtype == torch.bool else 1


def _select(tag: Tensor, source: Tensor, result: Tensor, dim: int, index: Tensor) -> Any:
    return tag[index] if dim == 0 else (tag if dim % source.ndim >= tag.ndim else UNKNOWN)


def _repeat(tag: Tensor, source: Tensor, result: Tensor, repeats: Any, dim: int | None = None) -> Any:
    return tag.repeat_interleave(repeats, dim=0) if dim == 0 else UNKNOWN


def _tile(tag: Tensor, source: Tensor, result: Tensor, *repeats: Any) -> Any:
    times = flat(repeats)
    return tag.repeat(*times[: tag.ndim]) if len(times) == source.ndim else UNKNOWN


def _expand(tag: Tensor, source: Tensor, result: Tensor, *sizes: Any) -> Any:
    return tag.expand(result.shape[: tag.ndim]) if result.ndim == source.ndim else UNKNOWN


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
        a, b = given or (0, 1)
        order[a], order[b] = order[b], order[a]
    still = len(list(takewhile(lambda axis: order[axis] == axis, range(source.ndim))))
    if still >= tag.ndim:
        return tag
    return _trimmed(_widened(tag, source.shape, source.ndim).permute(order))


def _cut(tag: Tensor, source: Tensor, result: Any, size: Any = None, dim: int = 0, **kwargs: Any) -> Any:
    return tag if dim % source.ndim >= tag.ndim else UNKNOWN


def _unbind(tag: Tensor, source: Tensor, result: Any, dim: int = 0) -> Any:
    return tag if dim % source.ndim >= tag.ndim else UNKNOWN


def _lost(tag: Tensor, source: Tensor, result: Tensor, *args: Any, **kwargs: Any) -> Any:
    return UNKNOWN


def joined(tags: Sequence[Tensor], result: Tensor, dim: int = 0) -> Any:
    """The tag of tensors that are concatenated along an axis."""
    first, dim = tags[0], dim % result.ndim
    if len(tags) == 1:
        return first
    if dim == 0:
        return torch.cat([t if t.ndim == 1 else _trimmed(t) for t in tags]) if _flat_all(tags) else UNKNOWN
    same = all(t.shape == first.shape and bool((t == first).all()) for t in tags[1:])
    return first if same and dim >= first.ndim else UNKNOWN


def _flat_all(tags: Sequence[Tensor]) -> bool:
    return all(_trimmed(t).ndim == 1 for t in tags)


def keeps_order(func: Callable[..., Any]) -> bool:
    """Whether rows that lie as the batch's do still lie so, if the result has the batch's axes at all."""
    return MOVES[func] in (_view, _sum)


def rearranges(func: Callable[..., Any], source: Tensor, result: Any) -> bool:
    """Whether a move leaves all rows, if it cuts none off, in the order of the batch along its first axis."""
    if MOVES[func] is _swap:
        return len(result) == len(source) and (len(source) == 1 or result.stride(0) == source.stride(0))
    return MOVES[func] in (_view, _expand, _getitem)


_T = torch.Tensor
_NAMED: list[tuple[Callable[..., Any], str]] = [
    (_select, "index_select"),
    (_repeat, "repeat_interleave"),
    (_view, "view reshape flatten unflatten squeeze unsqueeze"),
    (_sum, "sum mean"),
    (_swap, "transpose permute swapaxes t"),
    (_cut, "chunk split"),
    (_unbind, "unbind"),
    (_lost, "tile flip roll gather"),
]
MOVES: dict[Any, Callable[..., Any]] = {
    getattr(owner, name): move
    for move, names in _NAMED
    for name in names.split()
    for owner in (_T, torch)
    if hasattr(owner, name)
} | {_T.__getitem__: _getitem, _T.repeat: _tile, _T.expand: _expand}
JOINS = {torch.cat, torch.concat}
DESTINATION = {_T.index_add_, _T.index_add, torch.index_add, _T.scatter_add_, _T.index_copy_, _T.__setitem__}
_ROWWISE_NAMES = (
    "abs add add_ clamp clamp_ clone contiguous div div_ dropout exp float bfloat16 half double gelu mul mul_ neg relu "
    "relu_ sigmoid silu softmax sub sub_ tanh to type_as __add__ __radd__ __iadd__ __mul__ __rmul__ __imul__ __neg__ "
    "__sub__ __rsub__ __truediv__ masked_fill rsqrt pow square softplus log_softmax"
)
ROWWISE = {
    getattr(owner, name)
    for owner in (_T, torch, torch.nn.functional)
    for name in _ROWWISE_NAMES.split()
    if hasattr(owner, name)
}
