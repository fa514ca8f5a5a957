"""The parameters that a capture block tracks, and what stands in for them while it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradalign.errors import SketchError
from gradalign.sketch.capture.operators.derived import Derived
from gradalign.sketch.capture.operators.functions import Tap
from gradalign.sketch.parameters.fsdp2 import Fsdp2
from gradalign.sketch.parameters.shards import is_sharded

__all__ = ["TrackedParameters", "unseen"]


class TrackedParameters:
    """The trainable parameters of a model while a block is open.

    Those that FSDP2 shards are tracked once it has gathered them.

    Args:
        keep_grad: whether gradients go on to the parameters.
    """

    def __init__(self, keep_grad: bool) -> None:
        self._keep_grad = keep_grad
        self._known: dict[int, tuple[nn.Parameter, Derived]] = {}
        self._named: dict[str, nn.Parameter] = {}
        self._strangers: dict[int, Any] = {}
        self._before: dict[str, tuple[nn.Parameter, Tensor | None, int]] = {}
        self._fsdp2: Fsdp2 | None = None
        self._taps: dict[int, Tensor] = {}
        self._passed: dict[int, Tensor] = {}
        self._hooks: list[Any] = []

    def open(self, named: list[tuple[str, nn.Parameter]], fsdp2: Fsdp2 | None) -> None:
        """Track these.

        Raises:
            SketchError: one is a DTensor, and not of FSDP2.
        """
        for name, parameter in named:
            if fsdp2 is None and is_sharded(parameter):
                raise _computes_with(name)
        self._fsdp2 = fsdp2
        for name, parameter in named:
            if is_sharded(parameter):
                self._before[name] = parameter, parameter.grad, _writes(parameter.grad)
            else:
                self._track(name, parameter)
        if fsdp2 is not None:
            self._hooks += fsdp2.watch(self._look)

    def close(self) -> None:
        """Let go of all parameters."""
        for hook in self._hooks:
            hook.remove()
        for held in (self._known, self._named, self._strangers, self._before, self._taps, self._passed):
            held.clear()
        self._hooks.clear()

    def find(self, value: Any) -> Derived | None:
        """The parameter that a tensor is, if it is one."""
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        if self._fsdp2 is None or type(value) is Tensor or id(value) in self._strangers:
            return None
        return self._meet(value) if isinstance(value, nn.Parameter) and value.requires_grad else None

    def __contains__(self, value: Tensor) -> bool:
        return id(value) in self._known

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter of a name, as it is computed with."""
        return self._named[name]

    def tapped(self, parameter: Tensor) -> Tensor:
        """What to compute with in place of a parameter."""
        key = id(parameter)
        if key not in self._taps:
            self._taps[key] = self._passing(parameter) if self._keep_grad else parameter.detach().requires_grad_()
        return self._taps[key]

    def check_met(self) -> None:
        """Raise SketchError if a parameter got a gradient, and was never seen whole."""
        for name, (parameter, gradient, writes) in self._before.items():
            changed = parameter.grad is not gradient or _writes(parameter.grad) != writes
            if name not in self._named and changed:
                raise unseen(name)

    def _passing(self, parameter: Tensor) -> Tensor:
        key = id(parameter)

        def passed(gradient: Tensor) -> Tensor:
            self._passed[key] = gradient
            return gradient

        shown: Tensor = Tap.apply(parameter, passed)  # type: ignore[no-untyped-call]
        return shown

    def _track(self, name: str, parameter: nn.Parameter) -> None:
        if id(parameter) in self._known:
            return
        self._known[id(parameter)] = parameter, Derived(name, tuple(parameter.shape))
        self._named[name] = parameter
        self._hooks.append(parameter.register_hook(self._guard(name, id(parameter))))

    def _look(self) -> None:
        assert self._fsdp2 is not None
        with torch._C.DisableTorchFunction():
            for name, parameter in self._fsdp2.standing():
                if not is_sharded(parameter):
                    self._track(name, parameter)

    def _meet(self, value: nn.Parameter) -> Derived | None:
        """A parameter that is not known yet: FSDP2 has gathered it, or it is of another model."""
        self._look()
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        assert self._fsdp2 is not None
        for name, parameter in self._fsdp2.standing():
            if parameter is value:
                raise _computes_with(name)
        self._strangers[id(value)] = value
        return None

    def _guard(self, name: str, key: int) -> Any:
        def check(gradient: Tensor | None) -> None:
            if gradient is None:
                return
            passed = self._passed.pop(key, None)
            if passed is None or passed.data_ptr() != gradient.data_ptr():
                raise unseen(name)

        return check


def unseen(name: str) -> SketchError:
    """The error for a gradient that came another way than through a captured use."""
    return SketchError(
        f"{name} got a gradient from an operation that capture did not see: a kernel of its own, or a forward that ran "
        "before the with block. Run the forward inside the block; or freeze the parameter, or use from_grads()."
    )


def _computes_with(name: str) -> SketchError:
    return SketchError(
        f"{name} is a DTensor where the model computes with it, as under tensor parallelism; capture takes whole parameters "
        "(those of DDP, and of FSDP2, which gathers them). Sketch this model problem by problem with from_grads(), or take "
        "products out of forward passes with gradalign.forward."
    )


def _writes(gradient: Tensor | None) -> int:
    return 0 if gradient is None else gradient._version
