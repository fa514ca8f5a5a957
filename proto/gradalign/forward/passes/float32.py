"""Runs a model of 16-bit weights or under autocast in float32, without a copy of the model.

Differences of log-probs drown in the rounding of 16-bit activations. Below autograd and autocast, this mode gives every
operation float32 where it was to get 16 bits: a cast down is left out, and a 16-bit weight is widened as it is used, with
the step along the direction added in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Widened"]

_NARROW = (torch.bfloat16, torch.float16)


class Widened(TorchDispatchMode):
    """See the module's docstring.

    Args:
        moved: from the id of a 16-bit parameter to a function that gives it in float32, moved.
    """

    def __init__(self, moved: Mapping[int, Callable[[], Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._moved = moved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation in float32."""
        kwargs = dict(kwargs or {})
        written = _writes(func)
        target = next((args[i] for i in written if isinstance(i, int) and i < len(args)), None)
        if isinstance(target, Tensor) and target.dtype in _NARROW:
            # Made outside of this mode, and written to: it keeps its dtype, and the rest follows.
            return func(*(_narrowed(a, target.dtype) for a in args), **kwargs)
        wide = [a if i in written else self._widened(a) for i, a in enumerate(args)]
        named = {key: a if key in written else self._widened(a) for key, a in kwargs.items()}
        if named.get("dtype") in _NARROW:
            named["dtype"] = torch.float32
        return func(*wide, **named)

    def _widened(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.dtype not in _NARROW:
                return value
            moved = self._moved.get(id(value))
            return value.float() if moved is None else moved()
        if isinstance(value, (list, tuple)):
            return type(value)(self._widened(v) for v in value)
        return torch.float32 if isinstance(value, torch.dtype) and value in _NARROW else value


def _narrowed(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value


_WRITES: dict[Any, set[Any]] = {}


def _writes(func: Any) -> set[Any]:
    """The positions and names of the arguments that an operation writes to."""
    if func not in _WRITES:
        arguments = func._schema.arguments
        written = [(i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
        _WRITES[func] = {key for pair in written for key in pair}
    return _WRITES[func]
