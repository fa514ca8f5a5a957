"""A frozen diagonal that gradients are multiplied by before they are sketched, out of the state of an Adam optimizer.

Adam moves a parameter by about `g / (sqrt(v) + eps)`, so products in that geometry say more of what an update does than
plain ones. The diagonal is frozen, since sketches compare only if all were made with one, and has a name that goes on the
wire in `projection.preconditioner`. Two forms give the same products: the square root on both sides (symmetric), or the
whole on the validation gradient and nothing on the candidates (what the GradAlign reference does); norms, and so cosines,
differ.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradalign.errors import SketchError
from gradalign.sketch.capture.exact import Place
from gradalign.sketch.parameters.names import trainable_parameters
from gradalign.sketch.parameters.shards import LocalGradient, is_sharded, whole_tensor
from gradalign.wire.countsketch import matrix_shape

__all__ = ["Preconditioner", "SecondMoment"]

Form: TypeAlias = Literal["symmetric", "validation"]
SecondMoment: TypeAlias = Callable[[Tensor, Mapping[str, Any]], Tensor]
"""From a parameter and its optimizer state to the running mean of squared gradients, in the parameter's shape."""


class Preconditioner:
    """Positive multipliers of every sketched parameter; `Sketcher(model, preconditioner=...)` applies them.

    Args:
        diagonal: multipliers by canonical parameter name, each in the parameter's (global) shape: a tensor of a floating
            dtype, or a DTensor placed as the parameter is. Copied in float32.
        name: goes on the wire; sketches made with other multipliers need another. By default it is made of a digest of
            the multipliers.
        form: `symmetric`: the square root on validation and candidates; `validation`: the whole on validation alone.

    Attributes:
        name: as above, with `-validation` behind it in that form.
        form: as above.

    Raises:
        SketchError: a multiplier is not positive and finite, or DTensors are given without a name.
    """

    def __init__(self, diagonal: Mapping[str, Tensor], *, name: str | None = None, form: Form = "symmetric") -> None:
        if form not in ("symmetric", "validation"):
            raise SketchError(f"form is {form!r}; expected 'symmetric' or 'validation'.")
        self._diagonal = {key: value.detach().to(torch.float32, copy=True) for key, value in diagonal.items()}
        for key, value in self._diagonal.items():
            local = _local(value)
            if not bool((torch.isfinite(local) & (local > 0)).all()):
                raise SketchError(f"the multipliers of {key} are not all positive and finite; clamp them.")
        self.form: Form = form
        self.name = (name or _digest(self._diagonal)) + ("-validation" if form == "validation" else "")

    @classmethod
    def from_adam(
        cls,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        clamp: float = 100.0,
        second_moment: SecondMoment | None = None,
        name: str | None = None,
        form: Form = "symmetric",
    ) -> Preconditioner:
        """`1 / (sqrt(v) + eps)` of an Adam or AdamW optimizer that has taken steps, bias-corrected.

        Args:
            model: whose trainable parameters the optimizer steps.
            optimizer: keeps `exp_avg_sq` (or `max_exp_avg_sq`) and `step` for each; beta2 and eps come from its groups.
            clamp: the multipliers are given in units of that of the mean v of all elements, and kept within
                [1 / clamp, clamp]: an element that never got a gradient would have 1 / eps.
            second_moment: how to read v where the state is of another kind, such as an 8-bit optimizer's.
            name: as in the constructor.
            form: as in the constructor.

        Raises:
            SketchError: the optimizer has no state of a parameter, or clamp is below 1.
        """
        if not clamp >= 1:
            raise SketchError(f"clamp is {clamp}; expected a factor of at least 1.")
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        moments: dict[str, tuple[Tensor, float]] = {}
        for key, parameter in trainable_parameters(model):
            state = optimizer.state.get(parameter)
            if id(parameter) not in groups or not state:
                raise SketchError(
                    f"the optimizer holds no state of {key}; take a step first, and freeze what it does not train."
                )
            moment = (second_moment or _exp_avg_sq)(parameter, state).detach().float()
            _, beta = groups[id(parameter)].get("betas", (0.0, 0.0))
            correction = 1 - beta ** float(state["step"]) if "step" in state else 1.0
            moments[key] = moment / correction, float(groups[id(parameter)].get("eps", 1e-8))
        count = sum(moment.numel() for moment, _ in moments.values())
        typical = math.sqrt(sum(_total(moment) for moment, _ in moments.values()) / max(1, count))
        diagonal = {
            key: ((typical + eps) / (moment.clamp(min=0).sqrt() + eps)).clamp(1 / clamp, clamp)
            for key, (moment, eps) in moments.items()
        }
        return cls(diagonal, name=name, form=form)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise SketchError unless the multipliers are those of these parameters."""
        ours = {key: tuple(value.shape) for key, value in self._diagonal.items()}
        for key in sorted(ours.keys() | shapes.keys()):
            if ours.get(key) != shapes.get(key):
                raise SketchError(
                    f"the preconditioner has {key} as {ours.get(key, 'nothing')}, the model as "
                    f"{shapes.get(key, 'nothing')}; make one of this model's optimizer."
                )

    def whole(self) -> Preconditioner:
        """The same with all multipliers whole; of DTensors a collective, and a float an element of memory."""
        made = copy.copy(self)
        made._diagonal = {key: whole_tensor(value) for key, value in self._diagonal.items()}
        return made

    def scale(self, part: LocalGradient, *, validation: bool) -> LocalGradient:
        """A part of a gradient times the multipliers of its place; the part itself where this side has none."""
        power = self._power(validation)
        if power == 0 or part.tensor.numel() == 0:
            return part
        whole = self._diagonal[part.name]
        if is_sharded(whole):
            here = _local(whole)
            if here.shape != part.tensor.shape:
                raise SketchError(
                    f"the multipliers of {part.name} are a DTensor that is not placed as its gradient is; give them in "
                    "the parameter's placement, or whole."
                )
        elif isinstance(part.offset, int):
            here = whole.flatten()[part.offset : part.offset + len(part.tensor)]
        else:
            here = whole[tuple(slice(at, at + n) for at, n in zip(part.offset, part.tensor.shape, strict=True))]
        wide = part.tensor if part.tensor.dtype == torch.float64 else part.tensor.float()
        return part._replace(tensor=wide * _raised(here, power, wide))

    def at(self, place: Place, like: Tensor, *, validation: bool) -> Tensor | None:
        """The multipliers at a place of a parameter's matrix view, [rows, C], in the dtype and on the device of `like`."""
        power = self._power(validation)
        if power == 0:
            return None
        name, row, count = place
        rows, cols = matrix_shape(tuple(self._diagonal[name].shape))
        return _raised(self._diagonal[name].reshape(rows, cols)[row : row + count], power, like)

    def _power(self, validation: bool) -> float:
        return 0.5 if self.form == "symmetric" else float(validation)


def _exp_avg_sq(parameter: Tensor, state: Mapping[str, Any]) -> Tensor:
    for key in ("max_exp_avg_sq", "exp_avg_sq"):
        if key in state and state[key].shape == parameter.shape:
            moment: Tensor = state[key]
            return moment
    raise SketchError(
        f"the optimizer's state holds {sorted(state)} and no exp_avg_sq in the parameter's shape {tuple(parameter.shape)}; "
        "say how to read it with second_moment=, a function (parameter, state) -> Tensor."
    )


def _raised(multipliers: Tensor, power: float, like: Tensor) -> Tensor:
    here = multipliers.to(like.device, like.dtype)
    return (here.sqrt() if power == 0.5 else here).contiguous()


def _local(tensor: Tensor) -> Tensor:
    dtensor: Any = tensor
    local: Tensor = dtensor.to_local() if is_sharded(tensor) else tensor
    return local


def _total(moment: Tensor) -> float:
    total: Any = moment.double().sum()
    return float(total.full_tensor() if is_sharded(total) else total)


def _digest(diagonal: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for key in sorted(diagonal):
        if is_sharded(diagonal[key]):
            raise SketchError("multipliers that are DTensors need a name that all ranks agree on; give name=.")
        found.update(key.encode() + b"\n" + diagonal[key].cpu().numpy().tobytes())
    return "diagonal-" + found.hexdigest()[:16]
