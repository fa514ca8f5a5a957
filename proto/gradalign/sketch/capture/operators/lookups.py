"""Captured look-ups: of tokens, whose rows are the batch's, and of positions that all rows of the batch share.

Rows at shared positions have no axis of the batch. They are a value of the parameter alone, in the shape that the model
expects, until they meet an activation: there the gradient of each problem is taken. What cannot be taken apart where they
meet gets them once for each row of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from torch import Tensor

from gradalign.errors import SketchError
from gradalign.sketch.capture.operators.derived import CASTS, LookedUp
from gradalign.sketch.capture.operators.elementwise import elementwise
from gradalign.sketch.capture.operators.functions import Broadcast, Lookup
from gradalign.sketch.capture.operators.matmul import PRODUCTS
from gradalign.sketch.capture.operators.tracker import Tracker, name_of, refused
from gradalign.sketch.capture.rows.elements import pointwise
from gradalign.sketch.capture.rows.followed import called, flat, writes
from gradalign.sketch.capture.rows.indexing import picked_out
from gradalign.sketch.capture.rows.rules import rule_of
from gradalign.sketch.capture.rows.tags import CONSTANT, Followed

__all__ = ["RANDOM", "Copies", "embedding", "for_each_row", "is_shared", "way_of"]

_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]
Way = Literal["derive", "meet", "spread", "refuse"]
_T = torch.Tensor
_DRAWS = [
    "alpha_dropout",
    "bernoulli",
    "dropout",
    "feature_alpha_dropout",
    "rrelu",
    *(f"dropout{n}d" for n in (1, 2, 3)),
]
RANDOM = frozenset([*_DRAWS, *(f"{name}_" for name in _DRAWS), "gumbel_softmax", "native_dropout"])
"""Names of operations that draw anew each time they are run."""
_BY_ROW = frozenset({F.linear, torch.matmul, _T.matmul, _T.__matmul__, F.layer_norm, F.rms_norm, torch.rms_norm})
_COPY = "_gradalign_copy"


def embedding(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    """`weight[index]`."""

    def call(  # noqa: PLR0917 - torch's own signature
        input: Tensor,  # noqa: A002
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,  # noqa: ARG001
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        if max_norm is not None or scale_grad_by_freq or sparse or weight.ndim != 2:
            raise refused(tracker, func, weight)
        padding = -1 if padding_idx is None else padding_idx % len(weight)
        if not tracker.rows.shares(input):
            return _looked_up(tracker, input, weight, padding)
        made = tracker.find(weight)
        assert made is not None
        if input.ndim > 1 or made.steps:
            return _looked_up(tracker, tracker.rows.spread(input), weight, padding)
        looked = LookedUp(weight, input.detach().clone(), padding)
        return tracker.track(looked.rows(tracker.tapped(weight)), made.looking_up(looked))

    return call(*args, **kwargs)


def _looked_up(tracker: Tracker, index: Tensor, weight: Tensor, padding: int) -> Tensor:
    groups = tracker.rows.groups(index, 0, name_of(tracker, weight))
    out: Tensor = Lookup.apply(index, tracker.tapped(weight), tracker.recorder(weight), groups, padding)  # type: ignore[no-untyped-call]
    tracker.rows.copy(index, out)
    return out


def way_of(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs, handler: Any) -> Way:
    """What to do with rows at shared positions in a call.

    `derive`: the call makes another value of them alone. `meet`: an activation meets them in the shape that they have.
    `spread`: the call takes them once for each row of the batch. `refuse`: in no other shape than theirs, which it cannot.
    """
    values = flat((*args, *kwargs.values()))
    tracked = [t for t in values if tracker.find(t) is not None]
    others = [t for t in values if isinstance(t, Tensor) and tracker.find(t) is None]
    constant = all(tracker.rows.tag(t) is CONSTANT and not t.requires_grad for t in others)
    alone = len({(made.name, id(made.looked)) for made in map(tracker.find, tracked) if made is not None}) == 1
    if alone and (func in CASTS or (constant and not _draws(func) and not _spreads_now(tracker, func, tracked))):
        return "derive"
    beside = handler is elementwise and not tracker.rows.packed
    if alone and len(tracked) == 1 and (beside or (handler in PRODUCTS.values() and not is_shared(tracker, args[0]))):
        return "meet"
    # What is written into must not be a copy.
    return "spread" if (_keeps_rows(func) or _draws(func)) and not writes(func) else "refuse"


def _draws(func: Any) -> bool:
    return func.__name__ in RANDOM


def _keeps_rows(func: Any) -> bool:
    """Whether a call does the same to every row, and an axis more in front of its operands is one in front of its result."""
    return func in _BY_ROW or rule_of(func) in (pointwise, picked_out)


def _spreads_now(tracker: Tracker, func: Any, values: list[Tensor]) -> bool:
    """Whether this is the last call before which rows of a packed batch can have them: they are as they were looked up."""
    return (
        tracker.rows.packed
        and _keeps_rows(func)
        and not writes(func)
        and all(_as_looked_up(tracker, t) for t in values)
    )


def _as_looked_up(tracker: Tracker, value: Tensor) -> bool:
    made = tracker.find(value)
    return made is not None and made.looked is not None and made.plain and not made.turned


def for_each_row(tracker: Tracker, func: Any, values: Any) -> Any:
    """Arguments of a call, with rows at shared positions once for each row of the batch."""
    if isinstance(values, dict):
        return {name: for_each_row(tracker, func, value) for name, value in values.items()}
    if isinstance(values, (list, tuple)) and any(is_shared(tracker, t) for t in flat(values)):
        return type(values)(for_each_row(tracker, func, value) for value in values)
    return _spread(tracker, func, values) if is_shared(tracker, values) else values


def is_shared(tracker: Tracker, value: Any) -> bool:
    """Whether a value was made of rows at shared positions."""
    made = tracker.find(value)
    return made is not None and made.looked is not None


def _spread(tracker: Tracker, func: Any, value: Tensor) -> Tensor:
    """The value as an activation: [T, ...] as [B, T, ...], and [1, ...] of three axes or more as [B, ...]."""
    made = tracker.find(value)
    assert made is not None
    assert made.looked is not None
    if tracker.rows.packed:
        if not _as_looked_up(tracker, value):
            raise SketchError(
                f"{made.name} is looked up at positions that all rows share, and laid out anew before {func.__name__}, in a "
                "batch whose rows hold tokens of several problems: capture cannot tell which problem its rows belong to. "
                "Look the positions up as [B, T], or sketch this model problem by problem with from_grads()."
            )
        looked = made.looked
        index = tracker.rows.spread(looked.index)
        out = _looked_up(tracker, index, looked.weight, looked.padding)
        cast = out.to(value.dtype)
        tracker.rows.copy(out, cast)
        _mark(tracker, cast)
        return cast
    row = value.detach()[0] if value.ndim > 2 and len(value) == 1 else value.detach()
    batch = tracker.rows.of_batch(row)
    groups = tracker.rows.groups(batch, row.ndim, made.name)
    spread: Tensor = Broadcast.apply(tracker.tapped(value), tuple(batch.shape), tracker.recorder(value), groups, 1)  # type: ignore[no-untyped-call]
    tracker.rows.copy(batch, spread)
    if batch.ndim != value.ndim:
        _mark(tracker, spread)
    return spread


def _mark(tracker: Tracker, value: Tensor) -> None:
    """Note that a tensor has an axis of the batch in front that it does not have in the model."""
    setattr(value, _COPY, tracker)


class Copies:
    """The operands of a call that were spread, each with an axis of the batch in front that it does not have in the model.

    Args:
        tracker: of the capture.
        func: the operation.
        args: of the call.
        kwargs: of the call.
    """

    def __init__(self, tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> None:
        values = [t for t in flat((*args, *kwargs.values())) if isinstance(t, Tensor)]
        self._tracker, self._call = tracker, called(func, args, kwargs)
        self._copies = [t for t in values if getattr(t, _COPY, None) is tracker]
        rest = [t for t in values if getattr(t, _COPY, None) is not tracker]
        others = [t for t in rest if isinstance(tracker.rows.tag(t), Followed)] if self._copies else []
        self._alone = not others
        self._right = (_keeps_rows(func) or _draws(func)) and all(t.ndim == self._copies[0].ndim for t in others)

    def take(self, call: Callable[[], Any]) -> Any:
        """The result of the call; it is a copy too where the call takes nothing but copies.

        Raises:
            SketchError: the call gives another tensor than it would without the axis.
        """
        try:
            result = call()
        except (IndexError, RuntimeError, ValueError) as error:
            if self._copies and not self._right:
                raise self._refusal() from error
            raise
        tensors = [t for t in flat([result]) if isinstance(t, Tensor)]
        if self._copies and tensors and not self._right:
            raise self._refusal()
        for tensor in tensors if self._copies and self._alone else ():
            _mark(self._tracker, tensor)
        return result

    def _refusal(self) -> SketchError:
        return SketchError(
            f"{self._call} takes an activation of shape {tuple(self._copies[0].shape)}, which in the model has no axis of "
            "the batch: it was looked up at positions [T] that all rows share, and once for each row since a parameter or "
            "a dropout met it. Look the positions up as [1, T] or [B, T], or sketch this model problem by problem with "
            "from_grads()."
        )
