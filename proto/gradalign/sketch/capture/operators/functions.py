"""Uses of a parameter inside a capture: what autograd computes there, and the gradient of each problem besides.

Each use is an autograd function whose backward hands the factors of the parameter's gradient to a `Recorder` and gives
autograd the parameter's whole gradient, or none where `.grad` is to be left alone.
"""

# ruff: noqa: PLR0917 - autograd functions take their arguments by position

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's custom
from torch import Tensor
from torch.autograd import Function

from gradalign.sketch.capture.rows.problems import Groups

__all__ = ["Broadcast", "Convolution", "Lookup", "Product", "Recorder", "Tap", "Trap"]


class Recorder(Protocol):
    """Takes the per-problem gradients of one parameter, or of a value derived from it alone.

    Each method takes one use, and returns the gradient summed over all rows, or None where `.grad` is left alone.
    """

    def outer(self, left: Tensor, right: Tensor, groups: Groups) -> Tensor | None:
        """The gradient of each problem is the sum of outer products of its rows; left [n, R], right [n, C]."""

    def dense(self, gradients: Tensor, whole: Callable[[], Tensor]) -> Tensor | None:
        """The gradient of each problem as it is, [problems, *shape]; `whole` gives the sum over all rows."""

    def lookup(self, index: Tensor, rows: Tensor, groups: Groups, padding: int) -> Tensor | None:
        """The gradient of each problem is `rows[i]` [n, C] added to row `index[i]`; row `padding` gets none."""


def _unseen(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward whose own operations no torch function mode looks at; it gets the saved tensors as arguments."""

    @wraps(backward)
    def wrapped(ctx: Any, gradient: Tensor) -> Any:
        saved = ctx.saved_tensors  # gradient checkpointing runs the forward again here, which is to be looked at
        with torch._C.DisableTorchFunction():
            return backward(ctx, gradient, *saved)

    return wrapped


class Tap(Function):
    """The parameter itself; every captured use of it goes through here, so that any other use shows."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, passed: Callable[[Tensor], Tensor | None]) -> Tensor:
        """A view of the parameter."""
        ctx.passed = passed
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Report the gradient and pass it on."""
        return ctx.passed(gradient), None


class Trap(Function):
    """A value as the model sees it; captured uses go around, and a gradient that comes this way was not captured."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, refuse: Callable[[], None]) -> Tensor:
        """A view of the value."""
        ctx.refuse = refuse
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Refuse."""
        ctx.refuse()
        return gradient, None


class Product(Function):
    """`x @ w.T` (or `x @ w` with `plain`), x [..., I]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, recorder: Recorder, groups: Groups, plain: bool) -> Tensor:
        """The product, as F.linear gives it."""
        ctx.save_for_backward(x, weight)
        ctx.rest = recorder, groups, plain
        return torch.matmul(x, weight) if plain else F.linear(x, weight)

    @staticmethod
    @_unseen
    def backward(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor) -> Any:
        """The gradients of x and of the weight."""
        recorder, groups, plain = ctx.rest
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = torch.matmul(gradient, weight.t() if plain else weight)
        outs, ins = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        factors = (ins, outs) if plain else (outs, ins)
        return to_x, recorder.outer(*factors, groups), None, None, None


class Lookup(Function):
    """`weight[index]`, as F.embedding gives it."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, weight: Tensor, recorder: Recorder, groups: Groups, padding: int) -> Tensor:
        """The rows of the weight."""
        ctx.index = index
        ctx.rest = recorder, groups, padding
        return F.embedding(index, weight, padding if padding >= 0 else None)

    @staticmethod
    @_unseen
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The gradient of the weight."""
        recorder, groups, padding = ctx.rest
        rows = gradient.reshape(-1, gradient.shape[-1])
        return None, recorder.lookup(ctx.index.flatten(), rows, groups, padding), None, None, None


class Broadcast(Function):
    """`value.expand(shape)`, for a value that meets an activation element by element."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, shape: Sequence[int], recorder: Recorder, groups: Groups, rows: int) -> Tensor:
        """A view of the value; the first `rows` axes of `shape` are those that `groups` groups."""
        ctx.rest = tuple(value.shape), recorder, groups, rows
        return value.expand(tuple(shape))

    @staticmethod
    @_unseen
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The gradient of the value: summed over what it was expanded to."""
        shape, recorder, groups, rows = ctx.rest
        row = (1,) * (gradient.ndim - rows - len(shape)) + shape[max(0, len(shape) - (gradient.ndim - rows)) :]
        within = [rows + axis for axis, size in enumerate(row) if size == 1 and gradient.shape[rows + axis] != 1]
        each = gradient.sum(within, keepdim=True) if within else gradient
        sums = groups.sum(each.flatten(0, rows - 1))
        # Rows of no problem are part of the whole gradient and of no other.
        whole = (lambda: sums.sum(0).reshape(shape)) if groups.complete else (lambda: each.sum_to_size(shape))
        total = recorder.dense(sums.reshape(-1, *shape), whole)
        return total, None, None, None, None


class Convolution(Function):
    """`convolve(x, weight, **options)`, x [B, I, ...], for one of torch's convolutions."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, recorder: Recorder, groups: Groups, convolve: Any, options: dict[str, Any]
    ) -> Tensor:
        """The convolution."""
        ctx.save_for_backward(x, weight)
        ctx.rest = recorder, groups, convolve, options
        result: Tensor = convolve(x, weight, **options)
        return result

    @staticmethod
    @_unseen
    def backward(ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor) -> Any:
        """The gradients of x and of the weight: torch's own, of the rows of one problem at a time."""
        recorder, groups, convolve, options = ctx.rest

        def by(x: Tensor, gradient: Tensor, *, weights: bool) -> Tensor:
            with torch.enable_grad():
                leaves = x.detach().requires_grad_(not weights), weight.detach().requires_grad_(weights)
                out = convolve(*leaves, **options)
            found: Tensor = torch.autograd.grad(out, leaves[weights], gradient)[0]
            return found

        xs, outs = groups.sort(x), groups.sort(gradient)
        each = [
            by(xs[a:b], outs[a:b], weights=True) if b > a else torch.zeros_like(weight)
            for a, b in pairwise(groups.bounds)
        ]
        to_weight = recorder.dense(torch.stack(each), lambda: by(x, gradient, weights=True))
        to_x = by(x, gradient, weights=False) if ctx.needs_input_grad[0] else None
        return to_x, to_weight, None, None, None, None
