"""Values that a model computes from one parameter alone: casts, transposes, slices, `1 + weight`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from torch import Tensor

from gradalign.errors import SketchError
from gradalign.sketch.capture.rows.followed import flat

__all__ = ["CASTS", "EXPANDS", "LIKE", "PICKS", "Derived", "LookedUp", "by_values", "joined"]

_T = torch.Tensor
CASTS = {_T.to, _T.float, _T.double, _T.half, _T.bfloat16, _T.contiguous, _T.clone, torch.clone}
_TURNS = {_T.t, _T.T.__get__, _T.mT.__get__, torch.t}  # type: ignore[attr-defined]
_SWAPS = {_T.transpose, torch.transpose, _T.swapaxes}
PICKS = {_T.__getitem__, _T.select, torch.select}
EXPANDS = {_T.expand, _T.broadcast_to, torch.broadcast_to}
LIKE = {_T.expand_as: _T.expand, _T.reshape_as: _T.reshape, _T.view_as: _T.view}
"""What takes the shape of a second tensor, and the same by that shape."""
_TYPES = {_T.type_as, _T.to}


def by_values(func: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A call that takes only the shape or the dtype of a second tensor, as one that is given these."""
    if func in LIKE and len(args) == 2:
        return LIKE[func], (args[0], args[1].shape)
    if func in _TYPES and len(args) > 1 and isinstance(args[1], Tensor):
        return _T.to, (args[0], args[1].device, args[1].dtype, *args[2:])
    return func, args


@dataclass(frozen=True)
class LookedUp:
    """Rows of a parameter at indices that all rows of a batch share, such as positions.

    Attributes:
        weight: the parameter, [V, C].
        index: LongTensor [n].
        padding: the row that gets no gradient; -1 for none.
    """

    weight: Tensor
    index: Tensor
    padding: int

    def rows(self, weight: Tensor) -> Tensor:
        """The rows of a weight, [n, C]."""
        return F.embedding(self.index, weight, self.padding if self.padding >= 0 else None)


@dataclass(frozen=True)
class Derived:
    """A value and how it was made of a parameter.

    Attributes:
        name: the parameter.
        shape: of the parameter.
        steps: the operations, each taking the value before it, that give the value.
        plain: whether the value is a run of rows of the parameter's matrix view (perhaps turned, perhaps cast), so that
            its gradient is theirs; or the rows of `looked`.
        row: the first of those rows.
        turned: whether the last two axes are swapped.
        base: the tracked value that this one repeats, along the axes of the activation it is going to meet: expanded, or
            picked row by row. Its gradient is then taken where they meet, and never in this value's shape.
        picked: LongTensor of any axes, which of the base's first axis each of this value's is; None where it was expanded.
        looked: what was looked up in the parameter before the first of the steps; None where they start from all of it.
        beside: how the value was made of each other parameter that it depends on; all but one are constants in each.
    """

    name: str
    shape: tuple[int, ...]
    steps: tuple[Callable[[Tensor], Tensor], ...] = field(default=())
    plain: bool = True
    row: int = 0
    turned: bool = False
    base: Tensor | None = None
    picked: Tensor | None = None
    looked: LookedUp | None = None
    beside: tuple[Derived, ...] = ()

    @property
    def is_parameter(self) -> bool:
        """Whether the value is the parameter itself."""
        return not self.steps and self.looked is None

    @property
    def direct(self) -> bool:
        """Whether a gradient by the value is one by rows of the parameter, perhaps turned."""
        return self.plain and self.looked is None

    def looking_up(self, looked: LookedUp) -> Derived:
        """The rows of the parameter itself that were looked up."""
        assert not self.steps
        return replace(self, looked=looked)

    def then(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], before: Tensor, at: int
    ) -> Derived:
        """The value after one more operation, whose argument number `at` is this value, `before`."""

        head, tail = args[:at], args[at + 1 :]
        check = _unchanged(self.name, func, [*head, *tail, *kwargs.values()])

        def step(value: Tensor) -> Tensor:
            check()
            result: Tensor = func(*head, value, *tail, **kwargs)
            return result

        row, turned, plain = self.row, self.turned, self.plain and at == 0
        if func in CASTS:
            pass
        elif func in _TURNS or (func in _SWAPS and _last_two(args[1:], before.ndim)):
            plain = plain and before.ndim >= 2
            turned = not turned
        elif self.looked is not None:
            plain = False
        elif func in PICKS and before.ndim == 2 + turned and (pick := _picked(args, before)) is not None:
            row += pick * (before.shape[2] if turned else 1)
        elif func in PICKS and before.ndim == 3 and (pick := _picked(args, before)) is not None:
            row += pick * before.shape[1]
        else:
            plain = False
        beside = tuple(other.then(func, args, kwargs, before, at) for other in self.beside)
        made = Derived(
            self.name, self.shape, (*self.steps, step), plain, row, turned, looked=self.looked, beside=beside
        )
        if func in EXPANDS:
            return replace(made, base=args[at])
        if func in PICKS and self.looked is None and (key := _picked_rows(args)) is not None:
            return replace(made, base=args[at], picked=key)
        return made

    def by(self, other: Derived) -> Derived | None:
        """How the value was made of the parameter that another was made of; None if it was not."""
        ways = (self, *self.beside)
        return next((way for way in ways if way.name == other.name and way.looked is other.looked), None)

    def replayed(self, value: Tensor) -> Tensor:
        """The value anew, from the parameter or the rows of `looked`."""
        for step in self.steps:
            value = step(value)
        return value

    def pull_back(self, parameter: Tensor, gradients: Tensor) -> Tensor:
        """Gradients by the value, [n, *its shape], as gradients by the parameter or `looked`, [n, *its shape]."""
        if not self.steps:
            return gradients
        with torch.enable_grad():
            start = parameter.detach() if self.looked is None else self.looked.rows(parameter.detach())
            leaf = start.requires_grad_()
            value = self.replayed(leaf)
        (found,) = torch.autograd.grad(value, leaf, gradients.to(value.dtype), is_grads_batched=True)
        return found


def joined(func: Any, call: Callable[[list[Tensor]], Tensor], operands: Sequence[tuple[Derived, Tensor]]) -> Derived:
    """The value that a call of `func` makes of several, each given with how it was made.

    By each of the parameters, what was made of the others alone is a constant.
    """
    ways: list[Derived] = []
    for made, _ in operands:
        ways += [way for way in (made, *made.beside) if not any(known.by(way) for known in ways)]

    def by(way: Derived) -> Derived:
        parts = [(made.by(way), value.detach()) for made, value in operands]

        check = _unchanged(way.name, func, [constant for part, constant in parts if part is None])

        def step(value: Tensor) -> Tensor:
            check()
            return call([constant if part is None else part.replayed(value) for part, constant in parts])

        return Derived(way.name, way.shape, (step,), plain=False, looked=way.looked)

    first, *rest = map(by, ways)
    return replace(first, beside=tuple(rest))


def _unchanged(name: str, func: Any, values: Sequence[Any]) -> Callable[[], None]:
    """What raises SketchError once one of these tensors was changed in place, as a call run again would give another."""
    tensors = [t for t in flat(values) if isinstance(t, Tensor)]
    before = [_version(t) for t in tensors]

    def check() -> None:
        if [_version(t) for t in tensors] != before:
            raise SketchError(
                f"a value that {name} met in {getattr(func, '__name__', func)} was changed in place before the backward; "
                "give the operation a copy of it, or sketch this model problem by problem with from_grads()."
            )

    return check


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _last_two(dims: tuple[Any, ...], ndim: int) -> bool:
    return len(dims) == 2 and {d % ndim for d in dims} == {ndim - 1, ndim - 2}


def _picked(args: tuple[Any, ...], before: Tensor) -> int | None:
    key: Any = args[-1] if len(args) == 2 or (len(args) == 3 and args[1] == 0) else None
    if isinstance(key, Tensor) and (key.ndim or key.dtype == torch.bool or key.is_floating_point()):
        return None
    if isinstance(key, bool) or not hasattr(key, "__index__"):
        return None
    return int(key) % len(before)


def _picked_rows(args: tuple[Any, ...]) -> Tensor | None:
    key = args[-1] if len(args) == 2 else None
    return key if isinstance(key, Tensor) and key.ndim and key.dtype in (torch.int32, torch.int64) else None
