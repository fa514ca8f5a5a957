"""What the handlers of intercepted calls know of a capture, and the refusal they share."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import resolve_name

from gradalign.errors import SketchError
from gradalign.sketch.capture.operators.derived import Derived
from gradalign.sketch.capture.operators.functions import Recorder
from gradalign.sketch.capture.rows.followed import flat
from gradalign.sketch.capture.rows.problems import ProblemRows

__all__ = ["Tracker", "in_autocast", "meets_activation", "name_of", "refused"]

_T = torch.Tensor


class Tracker(Protocol):
    """Knows the tracked parameters of a capture block."""

    rows: ProblemRows
    in_backward: bool

    def find(self, value: Any) -> Derived | None:
        """How a value was made, if it is a tracked parameter or was derived from one."""

    def tapped(self, value: Tensor) -> Tensor:
        """The value to compute with in place of a tracked one."""

    def track(self, value: Tensor, derived: Derived) -> Tensor:
        """Remember how a new value was made; the value to hand to the model in its place."""

    def rewrite(self, shown: Tensor, derived: Derived) -> None:
        """Remember how a value is made that was changed in place."""

    def recorder(self, value: Tensor) -> Recorder:
        """The recorder of one use of a tracked value."""


def refused(tracker: Tracker, func: Any, value: Any) -> SketchError:
    """The error for a use that cannot be captured."""
    made = tracker.find(value)
    return SketchError(
        f"{made.name if made else 'a parameter'} is used by {resolve_name(func) or func}, which capture cannot take apart "
        "by problem. Freeze the parameter, or sketch this model problem by problem with from_grads()."
    )


def meets_activation(tracker: Tracker, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether one of the arguments is a tensor that is not tracked."""
    return any(isinstance(a, Tensor) and tracker.find(a) is None for a in flat((*args, *kwargs.values())))


def in_autocast(tracker: Tracker, *values: Tensor | None) -> tuple[Any, ...]:
    """The values in the dtype that autocast would compute a matrix product in."""
    device = next(v for v in values if v is not None).device.type
    if not torch.is_autocast_enabled(device):
        return values
    dtype = torch.get_autocast_dtype(device)
    lowered = []
    for value in values:
        if value is None or value.dtype in (dtype, torch.float64):
            lowered.append(value)
            continue
        found = tracker.find(value)
        low = (tracker.tapped(value) if found else value).to(dtype)
        if found:
            low = tracker.track(low, found.then(_T.to, (value, dtype), {}, value, 0))
        else:
            tracker.rows.copy(value, low)
        lowered.append(low)
    return tuple(lowered)


def name_of(tracker: Tracker, value: Tensor) -> str:
    """The parameter that a tracked value is or was made of."""
    found = tracker.find(value)
    assert found is not None
    return found.name
