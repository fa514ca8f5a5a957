"""Rules of operations that keep elements in their places, or mix them along axes that they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gradalign.sketch.capture.rows.followed import Call, combined, operands
from gradalign.sketch.capture.rows.tags import CONSTANT, Followed, Tag, apart, moved

__all__ = [
    "along",
    "along_last",
    "batch_normed",
    "beside",
    "constant",
    "element_losses",
    "in_place",
    "padded",
    "pointwise",
    "reduced",
    "renormed",
    "row_losses",
    "shifted",
    "within_rows",
]


def pointwise(call: Call) -> Tag:
    """Each element of the result depends on those of the operands that broadcasting puts beside it."""
    axes = call.out.ndim
    return combined(call, [beside(call, t, axes) for t in operands(call)])


def beside(call: Call, tensor: Tensor, axes: int) -> Tag:
    """The tag of an operand as broadcasting to so many axes lays it."""
    tag = call.tag(tensor)
    return tag.shifted(axes - tensor.ndim) if isinstance(tag, Followed) and tensor.ndim != axes else tag


def constant(call: Call) -> Tag:  # noqa: ARG001 - all rules share one signature
    """A new tensor, of no row."""
    return CONSTANT


def in_place(call: Call) -> Tag:
    """Axes of the result are those of the first operand, counted from the left, as far as rows are concerned."""
    return call.tag(call.args[0])


def within_rows(call: Call) -> Tag:
    """Windows, channels and the like: the first axis stays, all others may mix."""
    tags: list[Tag] = [call.tag(t) for t in operands(call)]
    first = next((t for t in tags if isinstance(t, Followed)), CONSTANT)
    tag = combined(call, [*(t for t in tags if not isinstance(t, Followed)), first])
    if not isinstance(tag, Followed):
        return tag
    others = [t for t in tags if isinstance(t, Followed) and not t.same(tag)]
    left = apart(tag, [a for a in tag.axes if a > 0])
    return call.lost() if left is None or others or call.out.ndim != call.args[0].ndim else left


def along(at: int, default: Any, *names: str) -> Callable[[Call], Any]:
    """All elements along some axes are mixed, and keep their places."""

    def rule(call: Call) -> Tag:
        tag = combined(call, [call.tag(t) for t in operands(call)])
        if not isinstance(tag, Followed):
            return tag
        return apart(tag, call.dims(at, default, *names)) or call.lost()

    return rule


def along_last(at: int, name: str) -> Callable[[Call], Any]:
    """The last axes are mixed, as many as the argument has numbers."""

    def rule(call: Call) -> Tag:
        given = call.get(at, name)
        tag = call.tag(call.args[0] if call.args else call.kwargs["input"])
        count = len(given) if isinstance(given, (tuple, list)) else 1
        if not isinstance(tag, Followed):
            return tag
        return apart(tag, range(call.out.ndim - count, call.out.ndim)) or call.lost()

    return rule


def reduced(at: int, *names: str) -> Callable[[Call], Any]:
    """Some axes, or all, are mixed and dropped or left with one element."""

    def rule(call: Call) -> Tag:
        if any(isinstance(a, Tensor) for a in call.args[1:]):
            return pointwise(call)
        source = call.args[0] if call.args else call.kwargs["input"]
        tag = call.tag(source)
        if not isinstance(tag, Followed):
            return tag
        dims = call.dims(at, None, *names)
        left = apart(tag, dims)
        if left is None:
            return call.lost()
        if call.out.ndim == source.ndim:
            return left
        return moved(left, [None if a in dims else a - sum(d < a for d in dims) for a in range(source.ndim)])

    return rule


def shifted(at: int, *names: str) -> Callable[[Call], Any]:
    """Elements change places along some axes, or along all of them read as one."""

    def rule(call: Call) -> Tag:
        tag = call.tag(call.args[0])
        if isinstance(tag, Followed) and set(tag.axes) & set(call.dims(at, None, *names)):
            return call.lost()
        return tag

    return rule


def renormed(call: Call) -> Tag:
    """All but one axis are mixed."""
    tag, dim = call.tag(call.args[0]), call.get(2, "dim") % call.out.ndim
    return (apart(tag, [a for a in tag.axes if a != dim]) or call.lost()) if isinstance(tag, Followed) else tag


def batch_normed(call: Call) -> Tag:
    """Batch norm: all but the channels are mixed where statistics are of the batch."""
    tag = call.tag(call.args[0])
    if not isinstance(tag, Followed) or not (
        call.get(5, "training", default=False) or call.get(1, "running_mean") is None
    ):
        return tag
    return apart(tag, [a for a in range(call.out.ndim) if a != 1]) or call.lost()


def row_losses(call: Call) -> Tag:
    """Losses of classes: one an element where they are not summed up."""
    tag = combined(call, [call.tag(call.args[0])])
    if not isinstance(tag, Followed) or call.out.ndim == 0 or call.args[0].ndim < 2:
        return call.lost() if isinstance(tag, Followed) else tag
    left = apart(tag, [1])
    return (
        call.lost()
        if left is None
        else moved(left, [None if a == 1 else a - (a > 1) for a in range(call.args[0].ndim)])
    )


def element_losses(call: Call) -> Tag:
    """Losses of elements: one an element where they are not summed up."""
    if call.out.ndim == 0:
        return combined(
            call, [call.lost() if isinstance(call.tag(t), Followed) else call.tag(t) for t in operands(call)]
        )
    return pointwise(call)


def padded(call: Call) -> Tag:
    """Padding along axes that hold no rows."""
    tag, pads = call.tag(call.args[0]), list(call.get(1, "pad"))
    if not isinstance(tag, Followed):
        return tag
    last = call.args[0].ndim - 1
    touched = [last - i // 2 for i, amount in enumerate(pads) if amount]
    return call.lost() if set(touched) & set(tag.axes) else tag
