"""What is known of the rows of a tensor inside a capture, and how that is put together.

A tag is one of three: `Followed` (the problem of each element), `CONSTANT` (made of no row of the batch), or `Lost`
(rows may have been mixed or reordered). Rows are positive knowledge: what is not known is `Lost`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

__all__ = [
    "CONSTANT",
    "FREE",
    "Constant",
    "Followed",
    "Lost",
    "Tag",
    "agree",
    "apart",
    "moved",
    "spread_out",
    "together",
]

FREE: Final = -2  # in the ids of a tag: an element of no row of the batch, such as padding


@dataclass(frozen=True, eq=False, slots=True)
class Followed:
    """The problem of each element of a tensor, which depends on some of its axes alone.

    Attributes:
        ids: LongTensor, one axis for each of `axes`; -1 for rows of no problem, `FREE` for elements of no row.
        axes: of the tensor, rising.
        stable: whether the ids are those of the batch or made of them alone, so that what is made of them can be kept.
        scores: whether these are scores of attention in a packed batch, whose last axis is the tokens attended to.
    """

    ids: Tensor
    axes: tuple[int, ...]
    stable: bool = False
    scores: bool = False

    def same(self, other: Followed) -> bool:
        """Whether both are known at a glance to say the same."""
        return self is other or (self.ids is other.ids and self.axes == other.axes)

    def shifted(self, by: int) -> Followed:
        """The tag with so many axes more in front."""
        return Followed(self.ids, tuple(a + by for a in self.axes), self.stable, self.scores) if by else self


@dataclass(frozen=True, eq=False, slots=True)
class Lost:
    """Rows that may have been mixed or reordered.

    Attributes:
        why: the operation that did it, as it was called.
        reordered: whether its rows looked as if they lay in the order of the batch before it, and did not.
    """

    why: str
    reordered: bool = False


class Constant:
    """The type of `CONSTANT`."""

    __slots__ = ()


CONSTANT: Final = Constant()
Tag = Followed | Lost | Constant


def spread_out(tag: Followed, shape: Sequence[int], axes: Iterable[int] | None = None) -> Tensor:
    """The ids in the shape of the tensor, or of some of its axes: a view without memory of its own."""
    kept = range(len(shape)) if axes is None else sorted(axes)
    sizes = [shape[a] for a in kept]
    return tag.ids.reshape([shape[a] if a in tag.axes else 1 for a in kept]).expand(sizes)


def together(ids: Tensor, axes: Sequence[int], source: Followed, *, view: bool = False) -> Followed:
    """The tag of ids that were written out along axes, without those along which they do not change.

    Args:
        view: whether the ids are a view of the source's, so that strides say along which axes they change.
    """
    kept = []
    for at in reversed(range(ids.ndim)):
        one: Tensor | None = None
        if ids.shape[at] == 1 or (ids.shape[at] and ids.stride(at) == 0):
            one = ids.narrow(at, 0, 1)
        elif ids.numel() and not (view and ids.ndim):
            most = ids.amax(at, keepdim=True)
            if bool(((ids == most) | (ids == FREE)).all()):
                one = most
        if one is None:
            kept.append(axes[at])
        else:
            ids = one.squeeze(at)
    found = tuple(reversed(kept))
    same = ids.shape == source.ids.shape and (
        (view and ids.data_ptr() == source.ids.data_ptr() and ids.stride() == source.ids.stride())
        or (not view and torch.equal(ids, source.ids))
    )
    return Followed(source.ids if same else ids, found, source.stable, source.scores)


def moved(tag: Followed, axes: Sequence[int | None]) -> Followed:
    """The tag after an operation that gives its axes other places: `axes[a]` is where axis a went."""
    places = [axes[a] for a in tag.axes]
    assert None not in places
    order = sorted(range(len(places)), key=lambda i: places[i] or 0)
    ids = tag.ids if order == list(range(len(order))) else tag.ids.permute(order)
    return Followed(ids, tuple(places[i] or 0 for i in order), tag.stable, tag.scores)


def apart(tag: Followed, axes: Iterable[int]) -> Followed | None:
    """The tag without some axes, if all that lies along them belongs together; else None."""
    ids, kept = tag.ids, list(tag.axes)
    for axis in axes:
        if axis not in kept:
            continue
        at = kept.index(axis)
        most = ids.amax(at, keepdim=True)
        if not bool(((ids == most) | (ids == FREE)).all()):
            return None
        ids = most.squeeze(at)
        del kept[at]
    return tag if len(kept) == len(tag.axes) else Followed(ids, tuple(kept), tag.stable, tag.scores)


def agree(one: Followed, other: Followed) -> Followed | None:
    """The tag of elements that depend on both, axes taken as the same; None where they are of different problems."""
    if one.same(other):
        return one
    axes = sorted({*one.axes, *other.axes})
    mine, its = (
        t.ids.reshape([t.ids.shape[t.axes.index(a)] if a in t.axes else 1 for a in axes]) for t in (one, other)
    )
    try:
        clash = (mine != its) & (mine != FREE) & (its != FREE)
    except RuntimeError:
        return None
    if bool(clash.any()):
        return None
    for tag, ids in ((one, mine), (other, its)):
        if len(tag.axes) == len(axes) and not bool((ids == FREE).any()):
            return tag
    mine, its = torch.broadcast_tensors(mine, its)
    return Followed(torch.where(mine == FREE, its, mine), tuple(axes), one.stable and other.stable, one.scores)
