"""Finds every use of a trainable parameter inside a capture, whichever module or function it happens in.

A `TorchFunctionMode` sees each call of torch's API. Where an argument is a tracked parameter, or was computed from one
alone, the call is replaced by one that records the gradient of each problem; a call that is not known is refused by
name. So no use goes by unseen, in whatever module it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from gradalign.sketch.capture.operators.derived import CASTS, LIKE, PICKS, by_values, joined
from gradalign.sketch.capture.operators.elementwise import MEETINGS, beside_constants, elementwise
from gradalign.sketch.capture.operators.lookups import (
    RANDOM,
    Copies,
    embedding,
    for_each_row,
    is_shared,
    way_of,
)
from gradalign.sketch.capture.operators.matmul import PRODUCTS
from gradalign.sketch.capture.operators.tracker import Tracker, meets_activation, refused
from gradalign.sketch.capture.rows.followed import flat, writes

__all__ = ["Interceptor"]

_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]
_T = torch.Tensor


class Interceptor(TorchFunctionMode):
    """See the module's docstring."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __torch_function__(self, func: Any, _types: Any, args: _Args = (), kwargs: _Kwargs | None = None) -> Any:
        """Replace a call that uses a tracked value; let others pass."""
        kwargs = kwargs or {}
        if func in _BACKWARDS:
            # Gradient checkpointing runs forwards inside the backward: they are to be seen, too.
            with self:
                self._tracker.in_backward = True
                try:
                    return _BACKWARDS[func](*args, **kwargs)
                finally:
                    self._tracker.in_backward = False
        if func in _UNTOUCHED:
            return func(*args, **kwargs)
        if func in LIKE and len(args) == 2 and args[0] is args[1] and self._tracker.find(args[0]) is not None:
            # How engines find what accumulates a gradient. A use of the result shows as one that was not captured.
            return func(*args, **kwargs)
        func, args = by_values(func, args)
        if self._tracker.rows.spreads:
            return Copies(self._tracker, func, args, kwargs).take(lambda: self._followed(func, args, kwargs))
        return self._followed(func, args, kwargs)

    def _followed(self, func: Any, args: _Args, kwargs: _Kwargs) -> Any:
        tracked = []
        if func not in _DETACHES and torch.is_grad_enabled():
            tracked = [a for a in (*args, *kwargs.values()) if self._tracker.find(a) is not None]
            tracked += [b for a in args if isinstance(a, (list, tuple)) for b in a if self._tracker.find(b) is not None]
        if not tracked:
            result = func(*args, **kwargs)
            self._tracker.rows.follow(func, args, kwargs, result)
            return result
        handler = _HANDLERS.get(func)
        shared = any(is_shared(self._tracker, t) for t in tracked)
        way = way_of(self._tracker, func, args, kwargs, handler) if shared else None
        if way == "spread":
            args, kwargs = (for_each_row(self._tracker, func, values) for values in (args, kwargs))
            return self.__torch_function__(func, (), args, kwargs)
        if way == "refuse":
            raise refused(self._tracker, func, tracked[0])
        alone = way == "derive" or (handler is elementwise and beside_constants(self._tracker, func, args, kwargs))
        meets = not alone and meets_activation(self._tracker, args, kwargs)
        if handler is not None and meets:
            return handler(self._tracker, func, args, kwargs)
        return self._derive(func, args, kwargs, tracked, meets=meets)

    def _derive(self, func: Any, args: _Args, kwargs: _Kwargs, tracked: list[Tensor], *, meets: bool) -> Any:
        tracker = self._tracker
        if func.__name__ in ("__get__", "__set__", "__delete__") and func not in _VIEWS:
            return func(*args, **kwargs)
        together = is_shared(tracker, tracked[0]) or _HANDLERS.get(func) is elementwise
        if len(tracked) > 1 and not meets and together:
            return self._join(func, args, kwargs)
        at = [i for i, a in enumerate(args) if tracker.find(a) is not None]
        meets = func not in CASTS and func not in PICKS and meets
        if len(tracked) != 1 or len(at) != 1 or meets:
            raise refused(tracker, func, tracked[0])
        value, made = tracker.tapped(args[at[0]]), tracker.find(args[at[0]])
        if made is None or (made.is_parameter and writes(func)):
            raise refused(tracker, func, tracked[0])
        version = value._version
        result = func(*args[: at[0]], value, *args[at[0] + 1 :], **kwargs)
        changed = value._version != version
        if func.__name__ in RANDOM and (changed or result is not value):
            raise refused(tracker, func, tracked[0])  # drawn again where its gradient is pulled back
        if changed:
            return self._rewrite(func, args, kwargs, value, result)
        return self._note(func, args, kwargs, at[0], value, result)

    def _note(self, func: Any, args: _Args, kwargs: _Kwargs, at: int, value: Tensor, result: Any) -> Any:  # noqa: PLR0917
        """What the model gets of a call of one tracked value, `value`, noted as made of it."""
        made = self._tracker.find(args[at])
        assert made is not None
        if isinstance(result, Tensor) and result.requires_grad and result is not value:
            return self._tracker.track(result, made.then(func, args, kwargs, value, at))
        if isinstance(result, (tuple, list)) and any(isinstance(r, Tensor) and r.requires_grad for r in result):
            return self._track_parts(func, args, kwargs, at, result)
        if result is value:
            return args[at]
        self._tracker.rows.follow(func, args, kwargs, result)
        return result

    def _rewrite(self, func: Any, args: _Args, kwargs: _Kwargs, value: Tensor, result: Any) -> Any:
        """A value that was changed in place: its gradient is pulled back through the same change of a copy."""
        made = self._tracker.find(args[0])
        if made is None or value.shape != args[0].shape or (result is not None and result is not value):
            raise refused(self._tracker, func, args[0])

        def change(value: Tensor, *rest: Any, **named: Any) -> Tensor:
            copy = value.clone()
            func(copy, *rest, **named)
            return copy

        self._tracker.rewrite(args[0], made.then(change, args, kwargs, value, 0))
        return None if result is None else args[0]

    def _join(self, func: Any, args: _Args, kwargs: _Kwargs) -> Any:
        """Another value of several that were made of the same rows at shared positions, or of whole parameters."""
        tracker = self._tracker
        tracked = [t for t in flat(args) if tracker.find(t) is not None]
        if writes(func) or any(tracker.find(v) is not None for v in kwargs.values()):
            raise refused(tracker, func, tracked[0])

        def call(values: list[Tensor]) -> Any:
            given = dict(zip(map(id, tracked), values, strict=True))
            return func(*(_with(a, given) for a in args), **kwargs)

        values = [tracker.tapped(t) for t in tracked]
        result = call(values)
        if not isinstance(result, Tensor):
            raise refused(tracker, func, tracked[0])
        made = [made for made in map(tracker.find, tracked) if made is not None]
        return tracker.track(result, joined(func, call, list(zip(made, values, strict=True))))

    def _track_parts(self, func: Any, args: _Args, kwargs: _Kwargs, at: int, result: Any) -> Any:
        made = self._tracker.find(args[at])
        assert made is not None

        def part(i: int) -> Tensor:
            def pick(value: Tensor, *rest: Any, **named: Any) -> Any:
                return func(value, *rest, **named)[i]

            return self._tracker.track(result[i], made.then(pick, args, kwargs, args[at], at))

        return tuple(part(i) for i in range(len(result)))


def _with(argument: Any, given: dict[int, Tensor]) -> Any:
    """An argument of a call, with other tensors in the places of some, by id."""
    if isinstance(argument, (list, tuple)):
        return type(argument)(_with(each, given) for each in argument)
    return given.get(id(argument), argument)


def _edges(values: Any) -> Any:
    """Tensors as edges of the graph, which torch takes for backward without asking the mode again."""
    if isinstance(values, Tensor):
        return get_gradient_edge(values) if values.requires_grad else values
    return [_edges(value) for value in values] if isinstance(values, (list, tuple)) else values


def _backward(  # noqa: PLR0917 - torch's own signature
    tensors: Any, gradient: Any = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None,
    grad_tensors: Any = None,
) -> None:  # fmt: skip
    gradient = grad_tensors if gradient is None else gradient
    torch.autograd.backward(_edges(tensors), gradient, retain_graph, create_graph, inputs=_edges(inputs))


def _grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    return torch.autograd.grad(_edges(outputs), _edges(inputs), *args, **kwargs)


_BACKWARDS: dict[Any, Callable[..., Any]] = {
    _T.backward: _backward,
    torch.autograd.backward: _backward,
    torch.autograd.grad: _grad,
}
_VIEWS = {getattr(_T, name).__get__ for name in ("T", "mT", "H", "mH")}
_DETACHES = {_T.data.__get__, _T.detach, _T.requires_grad_}  # type: ignore[attr-defined]
_UNTOUCHED = {
    *(getattr(_T, name).__get__ for name in ("grad", "shape", "dtype", "device", "ndim", "requires_grad", "is_leaf")),
    *(getattr(_T, name) for name in ("register_hook", "retain_grad", "size", "dim", "stride")),
    *(getattr(_T, name) for name in ("numel", "data_ptr", "is_floating_point", "__len__", "__repr__", "__hash__")),
}
_HANDLERS = PRODUCTS | MEETINGS | dict.fromkeys((F.embedding, torch.embedding), embedding)
