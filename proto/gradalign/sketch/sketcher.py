"""Sketches of a model's gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gradalign.errors import InvalidValue, SketchError
from gradalign.projection import Projection, parameters_digest
from gradalign.sketch.capture import Capture
from gradalign.sketch.coverage import Coverage
from gradalign.sketch.matrix import add_matrix
from gradalign.sketch.names import trainable_parameters
from gradalign.sketch.tables import HashTable

__all__ = ["Sketcher"]

_Named = Sequence[tuple[str, nn.Parameter]]


class Sketcher:
    """Sketches the gradient of every trainable parameter of a model into `dim` buckets (layout 1).

    The sketch is linear and depends on (seed, canonical name, global index) alone: see `gradalign.countsketch`.

    Args:
        model: any module; wrapper prefixes (DDP, FSDP, PEFT, torch.compile) are stripped from its parameters' names.
        dim: number of buckets k; the error of a cosine c is about (1 - c^2)/sqrt(k).
        seed: of the hashes; all sketches of a run need the same.
        dtype: that sketches are accumulated and returned in; float32, or float64 for tests.

    Attributes:
        projection: how the sketches are made; goes on the wire.
        coverage: what is sketched, and what is not and why.

    Raises:
        SketchError: nothing is trainable, two parameters have one canonical name, or dim or seed is out of range.
    """

    def __init__(self, model: nn.Module, dim: int = 8192, seed: int = 0, *, dtype: torch.dtype = torch.float32) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise SketchError(f"dtype is {dtype}; sketches accumulate in torch.float32 or torch.float64.")
        self._model = model
        self.dtype = dtype
        named = list(trainable_parameters(model))
        self.shapes = _distinct_shapes(named)
        self.projection = _projection(dim, seed, self.shapes)
        self.coverage = Coverage.of(model)
        self._tables: dict[tuple[str, torch.device], HashTable] = {}

    def from_grads(self) -> Tensor:
        """The sketch of the `.grad` of all trainable parameters; a missing gradient counts as zero.

        Returns:
            float32 [dim] (or the Sketcher's dtype), on the device of the first parameter.

        Raises:
            SketchError: the set of trainable parameters or a shape changed since the Sketcher was made, or a gradient
                is sparse or not finite; the message names the parameter.
        """
        named = self.named()
        totals: dict[torch.device, Tensor] = {}
        for name, parameter in named:
            gradient = parameter.grad
            if gradient is None or gradient.numel() == 0:
                continue
            if gradient.layout != torch.strided:
                raise SketchError(
                    f"the gradient of {name} is sparse ({gradient.layout}); build its embedding with sparse=False."
                )
            device = gradient.device
            if device not in totals:
                totals[device] = torch.zeros(self.projection.dim, dtype=self.dtype, device=device)
            add_matrix(totals[device], gradient, self.table(name, device))
        home = named[0][1].device
        total = torch.zeros(self.projection.dim, dtype=self.dtype, device=home)
        for part in totals.values():
            total += part.to(home)
        _check_finite(total, named)
        return total

    def gradients(self) -> dict[str, Tensor]:
        """A copy of the `.grad` of all trainable parameters by canonical name, to capture against.

        After the backward of the validation problems this is the full validation gradient.
        """
        return {name: p.grad.detach().clone() for name, p in self.named() if p.grad is not None}

    def capture(
        self,
        problem_index: Tensor,
        *,
        problems: int | None = None,
        keep_grad: bool = True,
        against: Mapping[str, Tensor] | None = None,
        onto: Capture | None = None,
    ) -> Capture:
        """Sketch each problem of a batch out of the batch's own forward and backward.

            with sketcher.capture(problem_index) as captured:
                loss(model(input_ids)).backward()
            captured.sketches  # [problems, dim]

        Row p is what `from_grads()` would give after the backward of the part of the loss that is problem p's: the loss
        must be a sum of terms that each depend on the rows of one problem.

        Args:
            problem_index: LongTensor [B], problem of each row of the batch; or [B, T], of each token of packed rows; -1
                for none.
            problems: number of problems; by default the largest index + 1.
            keep_grad: add to `.grad` what the backward would have added without capture; else leave `.grad` alone.
            against: the full validation gradient, as `gradients()` gives it: then `captured.dots` are the exact products of
                each problem's gradient with its unit vector, and `captured.norms` the exact norms. All rows of a problem
                must be in this one batch, in one backward.
            onto: an earlier capture of the same problems, to whose sketches this batch's are added: for a problem whose
                rows are split over micro-batches. No memory but the sketches is needed.

        Raises:
            SketchError: here, for an index of another shape or range; in the block, when a parameter is used in a way
                that cannot be taken apart by problem (the message names it), a forward or a backward ran outside the
                block, captures nest, or a gradient is not finite.
        """
        return Capture(self, problem_index, problems, keep_grad=keep_grad, against=against, onto=onto)

    @property
    def dim(self) -> int:
        """Number of buckets of a sketch."""
        return self.projection.dim

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """The trainable parameters by canonical name; SketchError if they are not those the Sketcher was made for."""
        named = list(trainable_parameters(self._model))
        self._check_unchanged(named)
        return named

    def table(self, name: str, device: torch.device) -> HashTable:
        """The hashes of one parameter on one device."""
        key = (name, device)
        if key not in self._tables:
            self._tables[key] = HashTable.of(
                name,
                self.shapes[name],
                dim=self.projection.dim,
                seed=self.projection.seed,
                device=device,
                dtype=self.dtype,
            )
        return self._tables[key]

    def _check_unchanged(self, named: _Named) -> None:
        shapes = {name: tuple(parameter.shape) for name, parameter in named}
        if shapes == self.shapes:
            return
        for name in sorted(shapes.keys() | self.shapes.keys()):
            before, now = self.shapes.get(name, "not trainable"), shapes.get(name, "not trainable")
            if before != now:
                raise SketchError(
                    f"{name} was {before} when the Sketcher was made and is {now} now. Make a new Sketcher, and start a "
                    "new run at the scorer: its sketches do not compare with the old ones."
                )


def _distinct_shapes(named: _Named) -> dict[str, tuple[int, ...]]:
    if not named:
        raise SketchError("the model has no parameter with requires_grad=True; unfreeze what is trained first.")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in named:
        if name in shapes:
            raise SketchError(
                f"two parameters have the canonical name {name} once wrapper prefixes are stripped; rename the module "
                "of one of them."
            )
        if not parameter.dtype.is_floating_point:
            raise SketchError(f"{name} is {parameter.dtype}; only parameters of a real floating dtype can be sketched.")
        shapes[name] = tuple(parameter.shape)
    return shapes


def _projection(dim: int, seed: int, shapes: dict[str, tuple[int, ...]]) -> Projection:
    try:
        return Projection(dim=dim, seed=seed, parameters=parameters_digest(shapes))
    except InvalidValue as error:
        raise SketchError(str(error)) from None


def _check_finite(total: Tensor, named: _Named) -> None:
    if torch.isfinite(total).all():
        return
    for name, parameter in named:
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            raise SketchError(
                f"the gradient of {name} holds inf or NaN; leave this problem out of the round and look at its loss "
                "(under fp16, unscale the gradients first)."
            )
    raise SketchError(
        "every gradient is finite, but their sketch overflows float32; scale the loss down, or clip the gradients."
    )
