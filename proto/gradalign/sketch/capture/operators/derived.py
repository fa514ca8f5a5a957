"""Values that a model computes from one parameter alone: casts, transposes, slices, `1 + weight`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from torch import Tensor

__all__ = ["CASTS", "EXPANDS", "LIKE", "PICKS", "Derived", "LookedUp"]

_T = torch.Tensor
CASTS = {_T.to, _T.float, _T.double, _T.half, _T.bfloat16, _T.type_as, _T.contiguous, _T.clone, torch.clone}
_TURNS = {_T.t, _T.T.__get__, _T.mT.__get__, torch.t}  # type: ignore[attr-defined]
_SWAPS = {_T.transpose, torch.transpose, _T.swapaxes}
PICKS = {_T.__getitem__, _T.select, torch.select}
EXPANDS = {_T.expand, _T.broadcast_to, torch.broadcast_to}
LIKE = {_T.expand_as: _T.expand, _T.reshape_as: _T.reshape, _T.view_as: _T.view}
"""What takes the shape of a second tensor, and the same by that shape."""


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
        picked: LongTensor [n], which of the base's first axis each of this value's is; None where it was expanded.
        looked: what was looked up in the parameter before the first of the steps; None where they start from all of it.
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

        def step(value: Tensor) -> Tensor:
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
        made = Derived(self.name, self.shape, (*self.steps, step), plain, row, turned, looked=self.looked)
        if func in EXPANDS:
            return replace(made, base=args[at])
        if func in PICKS and self.looked is None and (key := _picked_rows(args)) is not None:
            return replace(made, base=args[at], picked=key)
        return made

    def and_others(self, call: Callable[[list[Tensor]], Tensor], others: Sequence[Derived]) -> Derived:
        """The value that a call makes of this one and of others that were made of the same, in order."""

        def step(value: Tensor) -> Tensor:
            return call([each.replayed(value) for each in (self, *others)])

        return Derived(self.name, self.shape, (step,), plain=False, looked=self.looked)

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
    return key if isinstance(key, Tensor) and key.ndim == 1 and key.dtype in (torch.int32, torch.int64) else None
