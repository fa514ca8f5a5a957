"""Slopes of log-probs along a direction by forward-mode differentiation: no step, so no rounding of a difference.

Every activation carries its derivative with it (`torch.autograd.forward_ad`). A linear layer then takes three products
where a forward takes one. The model's parameters are replaced by dual numbers for the while; its weights do not move.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as fw
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradalign.errors import DirectionError
from gradalign.forward.passes.batches import checked_logprobs
from gradalign.forward.passes.replay import Passes

__all__ = ["dual_slopes"]


def dual_slopes(
    passes: Passes, model: nn.Module, tangents: Mapping[nn.Parameter, Tensor], scale: float
) -> list[Tensor]:
    """Slopes from one pass with derivatives, float64 [B, T] a micro-batch.

    Args:
        passes: of the trainer's log-prob function.
        model: that the function runs.
        tangents: the direction by parameter; a parameter without one stays.
        scale: what the slopes along the tangents are multiplied by.

    Raises:
        DirectionError: nothing that the function gives depends on the parameters in a way that forward mode follows.
        NotImplementedError, RuntimeError: from torch, where a kernel has no forward derivative.
    """
    slopes = []
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(fw.dual_level())
        with warnings.catch_warnings():
            # torch warns of its own use of torch.jit when it first loads forward derivatives.
            warnings.simplefilter("ignore", DeprecationWarning)
            duals = {p: fw.make_dual(p.detach(), _fit(t, p)) for p, t in tangents.items()}
        stack.enter_context(_replaced(model, duals))
        found = passes.raw()
        for given, value in zip(passes.given, found, strict=True):
            primal, tangent = fw.unpack_dual(value) if isinstance(value, Tensor) else (value, None)
            checked_logprobs(primal, given)
            if tangent is None:
                raise DirectionError(
                    "the log-probs came without derivatives: the function runs under inference_mode(), on another copy of "
                    "the weights, or through a kernel that drops them. Use method='central'."
                )
            slope = checked_logprobs(tangent, given, "the derivative of logprobs(batch)")
            slopes.append(slope.double() * scale)
    return slopes


def _fit(tangent: Tensor, parameter: nn.Parameter) -> Tensor:
    return tangent.to(parameter.device, parameter.dtype)


@contextmanager
def _replaced(model: nn.Module, duals: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Has every module that holds one of the parameters hold its dual number instead."""
    places: list[tuple[nn.Module, str, Any]] = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter in duals
    ]
    try:
        for module, name, parameter in places:
            module._parameters[name] = duals[parameter]  # type: ignore[assignment]
        torch.clear_autocast_cache()
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
        torch.clear_autocast_cache()
