"""Finds every use of a trainable parameter inside a capture, whichever module or function it happens in.

A `TorchFunctionMode` sees each call of torch's API. Where an argument is a tracked parameter, or was computed from one
alone, the call is replaced by one that records the gradient of each problem; a call that is not known is refused by
name. So no use goes by unseen, in whatever module it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode, resolve_name

from gradalign.errors import SketchError
from gradalign.sketch.derived import CASTS, PICKS, Derived
from gradalign.sketch.rows import ProblemRows
from gradalign.sketch.uses import Broadcast, Lookup, Product, Recorder

__all__ = ["Interceptor", "Tracker"]

_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]
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

    def recorder(self, value: Tensor) -> Recorder:
        """The recorder of one use of a tracked value."""


class Interceptor(TorchFunctionMode):
    """See the module's docstring."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __torch_function__(self, func: Any, types: Any, args: _Args = (), kwargs: _Kwargs | None = None) -> Any:
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
        if func in _UNTOUCHED or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        tracked = [a for a in (*args, *kwargs.values()) if self._tracker.find(a) is not None]
        tracked += [b for a in args if isinstance(a, (list, tuple)) for b in a if self._tracker.find(b) is not None]
        if not tracked:
            result = func(*args, **kwargs)
            self._tracker.rows.follow(func, args, kwargs, result)
            return result
        handler = _HANDLERS.get(func)
        if handler is not None and _meets_activation(self._tracker, args, kwargs):
            return handler(self._tracker, func, args, kwargs)
        return self._derive(func, args, kwargs, tracked)

    def _derive(self, func: Any, args: _Args, kwargs: _Kwargs, tracked: list[Tensor]) -> Any:
        tracker = self._tracker
        if func.__name__ in ("__get__", "__set__", "__delete__") and func not in _VIEWS:
            return func(*args, **kwargs)
        at = [i for i, a in enumerate(args) if tracker.find(a) is not None]
        meets = func not in CASTS and func not in PICKS and _meets_activation(tracker, args, kwargs)
        if len(tracked) != 1 or len(at) != 1 or meets:
            raise refused(tracker, func, tracked[0])
        value = tracker.tapped(args[at[0]])
        result = func(*args[: at[0]], value, *args[at[0] + 1 :], **kwargs)
        if isinstance(result, Tensor) and result.requires_grad and result is not value:
            made = tracker.find(args[at[0]])
            assert made is not None
            return tracker.track(result, made.then(func, args, kwargs, value, at[0]))
        if isinstance(result, (tuple, list)) and any(isinstance(r, Tensor) and r.requires_grad for r in result):
            return self._track_parts(func, args, kwargs, at[0], result)
        return args[at[0]] if result is value else result

    def _track_parts(self, func: Any, args: _Args, kwargs: _Kwargs, at: int, result: Any) -> Any:
        made = self._tracker.find(args[at])
        assert made is not None

        def part(i: int) -> Tensor:
            def pick(value: Tensor, *rest: Any, **named: Any) -> Any:
                return func(value, *rest, **named)[i]

            return self._tracker.track(result[i], made.then(pick, args, kwargs, args[at], at))

        return tuple(part(i) for i in range(len(result)))


def refused(tracker: Tracker, func: Any, value: Any) -> SketchError:
    """The error for a use that cannot be captured."""
    made = tracker.find(value)
    return SketchError(
        f"{made.name if made else 'a parameter'} is used by {resolve_name(func) or func}, which capture cannot take apart "
        "by problem. Freeze the parameter, or sketch this model problem by problem with from_grads()."
    )


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


def _meets_activation(tracker: Tracker, args: _Args, kwargs: _Kwargs) -> bool:
    return any(isinstance(a, Tensor) and tracker.find(a) is None for a in (*args, *kwargs.values()))


def _lowered(tracker: Tracker, *values: Tensor | None) -> tuple[Any, ...]:
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


def _name(tracker: Tracker, value: Tensor) -> str:
    found = tracker.find(value)
    assert found is not None
    return found.name


def _product(tracker: Tracker, func: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *, plain: bool) -> Tensor:
    if tracker.find(x) is not None or weight.ndim != 2 or x.ndim < 2:
        raise refused(tracker, func, weight if tracker.find(weight) is not None else x)
    x, weight, bias = _lowered(tracker, x, weight, bias)
    if tracker.find(weight) is None:
        out = torch.matmul(x, weight) if plain else F.linear(x, weight)
    else:
        groups = tracker.rows.groups(x, 1, _name(tracker, weight))
        out = Product.apply(x, tracker.tapped(weight), tracker.recorder(weight), groups, plain)  # type: ignore[no-untyped-call]
    tracker.rows.copy(x, out)
    return out if bias is None else _elementwise(tracker, _T.add_, (out, bias), {})


def _linear(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    def call(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's name
        return _product(tracker, func, input, weight, bias, plain=False)

    return call(*args, **kwargs)


def _matmul(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    if len(args) != 2 or kwargs or tracker.find(args[1]) is None:
        raise refused(tracker, func, args[0] if tracker.find(args[1]) is None else args[1])
    return _product(tracker, func, *args, None, plain=True)


def _addmm(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    if len(args) != 3 or kwargs:
        raise refused(tracker, func, next(a for a in args if tracker.find(a) is not None))
    return _product(tracker, func, args[1], args[2], args[0], plain=True)


def _embedding(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
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
        index = tracker.rows.spread(input)
        groups = tracker.rows.groups(index, 0, _name(tracker, weight))
        return Lookup.apply(index, tracker.tapped(weight), tracker.recorder(weight), groups, padding)  # type: ignore[no-any-return, no-untyped-call]

    return call(*args, **kwargs)


def _broadcast(tracker: Tracker, func: Any, x: Tensor, value: Tensor) -> Tensor:
    """A tracked value in the shape in which it meets an activation."""
    shape = tuple(value.shape)
    while shape and shape[0] == 1:
        shape = shape[1:]
    rows = x.ndim - len(shape)
    if rows < 1 or value.ndim > x.ndim:
        raise refused(tracker, func, value)
    groups = tracker.rows.groups(x, len(shape), _name(tracker, value))
    meeting = torch.broadcast_shapes(x.shape, value.shape)
    return Broadcast.apply(tracker.tapped(value), meeting, tracker.recorder(value), groups, rows)  # type: ignore[no-any-return, no-untyped-call]


def _elementwise(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    if len(args) < 2 or "out" in kwargs or all(tracker.find(a) is not None for a in args[:2]):
        raise refused(tracker, func, args[0])
    at = 1 if tracker.find(args[1]) is not None else 0
    x = args[1 - at]
    if tracker.find(args[at]) is None:
        out: Tensor = func(*args, **kwargs)
        return out
    met = _broadcast(tracker, func, x, args[at])
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
            out = _elementwise(tracker, step, (out, part), {})
    return out


def _grouped_mm(tracker: Tracker, func: Any, args: _Args, kwargs: _Kwargs) -> Tensor:
    given = dict(zip(("x", "weight", "offs"), args, strict=False)) | kwargs
    x, weight, offs = given["x"], given["weight"], given.get("offs")
    if tracker.find(weight) is None or offs is None or x.ndim != 2 or weight.ndim != 3 or given.get("bias") is not None:
        raise refused(tracker, func, weight if tracker.find(weight) is not None else x)
    made = tracker.find(weight)
    assert made is not None
    outs, start = [], 0
    for expert, (stop, part) in enumerate(zip(offs.tolist(), tracker.tapped(weight).unbind(0), strict=True)):
        if stop > start:
            picked = tracker.track(part, made.then(_T.__getitem__, (weight, expert), {}, weight, 0))
            rows = x[start:stop]
            tracker.rows.follow(_T.__getitem__, (x, slice(start, stop)), {}, rows)
            outs.append(_product(tracker, func, rows, picked, None, plain=True))
        start = max(start, stop)
    outs.append(x.new_zeros(len(x) - start, weight.shape[2], dtype=outs[0].dtype if outs else x.dtype))
    out = torch.cat(outs)
    tracker.rows.copy(x, out)
    return out


_BACKWARDS: dict[Any, Callable[..., Any]] = {
    _T.backward: _backward,
    torch.autograd.backward: _backward,
    torch.autograd.grad: _grad,
}
_VIEWS = {getattr(_T, name).__get__ for name in ("T", "mT", "H", "mH")}
_UNTOUCHED = {
    *(getattr(_T, name).__get__ for name in ("data", "grad")),
    *(
        getattr(_T, name)
        for name in ("detach", "requires_grad_", "register_hook", "retain_grad", "size", "dim", "stride")
    ),
    *(getattr(_T, name) for name in ("numel", "data_ptr", "is_floating_point", "__len__", "__repr__", "__hash__")),
}
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
_HANDLERS: dict[Any, Callable[[Tracker, Any, _Args, _Kwargs], Any]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.embedding: _embedding,
    torch.addmm: _addmm,
    _T.addmm: _addmm,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    _T.matmul: _matmul,
    _T.mm: _matmul,
    _T.__matmul__: _matmul,
    F.layer_norm: _norm,
    F.rms_norm: _norm,
    torch.rms_norm: _norm,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}
for _grouped in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)):
    if _grouped is not None:
        _HANDLERS[_grouped] = _grouped_mm
