"""Sketches of a model's gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from gradalign.errors import InvalidValue, SketchError
from gradalign.sketch.capture.capture import Capture
from gradalign.sketch.capture.exact import Place, check_against
from gradalign.sketch.kernels.tables import HashTable
from gradalign.sketch.parameters.coverage import Coverage
from gradalign.sketch.parameters.fsdp2 import Fsdp2
from gradalign.sketch.parameters.names import canonical_name, trainable_parameters
from gradalign.sketch.parameters.shards import (
    LocalGradient,
    LocalGradients,
    check_part,
    check_placement,
    local_part,
    own_part,
    paired,
    placed_as,
)
from gradalign.sketch.preconditioner import Preconditioner
from gradalign.sketch.totals import ExactSketch, Totals, check_finite, exact_sketch
from gradalign.wire.projection import Projection, parameters_digest

__all__ = ["Sketcher"]

_Named = Sequence[tuple[str, nn.Parameter]]


class Sketcher:
    """Sketches the gradient of every trainable parameter of a model into `dim` buckets (layout 1).

    The sketch is linear and depends on (seed, canonical name, global index) alone: see `gradalign.wire.countsketch`.

    Args:
        model: any module; wrapper prefixes (DDP, FSDP, PEFT, torch.compile) are stripped from its parameters' names.
        dim: number of buckets k; the error of a cosine c is about (1 - c^2)/sqrt(k).
        seed: of the hashes; all sketches of a run need the same.
        dtype: that sketches are accumulated and returned in; float32, or float64 for tests.
        preconditioner: a frozen diagonal that gradients are multiplied by first; `for_validation()` gives the Sketcher of
            the validation side.
        reproducible: sum in fixed point, so that equal gradients give equal bits on any number of threads and ranks, in
            any order and sharding. No more: whether gradients are equal to the bit is up to the library that computes
            them, and matrix products, which make those of `capture`, round otherwise on another processor, number of
            threads or batch. Slower, and without the way through the factors in `capture`.

    Attributes:
        projection: how the sketches are made; goes on the wire.
        coverage: what is sketched, and what is not and why.

    Raises:
        SketchError: nothing is trainable, two parameters have one canonical name, dim or seed is out of range, or the
            preconditioner is of other parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        dim: int = 8192,
        seed: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        preconditioner: Preconditioner | None = None,
        reproducible: bool = False,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise SketchError(f"dtype is {dtype}; sketches accumulate in torch.float32 or torch.float64.")
        _refuse_flat_parameters(model)
        self._model = model
        self.dtype = dtype
        named = list(trainable_parameters(model))
        self.shapes = _distinct_shapes(named)
        self.projection = _projection(dim, seed, self.shapes, preconditioner)
        self.coverage = Coverage.of(model)
        self.reproducible = reproducible
        self._preconditioner = preconditioner
        self._whole: Preconditioner | None = None
        self._validation = False
        self._tables: dict[tuple[str, torch.device], HashTable] = {}

    def for_validation(self) -> Sketcher:
        """The Sketcher of the validation problems: this one, or with a preconditioner of the validation form, its twin.

        Its projection is the same.
        """
        twin = copy.copy(self)
        twin._validation = True
        return twin

    @overload
    def from_grads(self) -> Tensor: ...

    @overload
    def from_grads(self, *, against: Mapping[str, Tensor]) -> ExactSketch: ...

    def from_grads(self, *, against: Mapping[str, Tensor] | None = None) -> Tensor | ExactSketch:
        """The sketch of the `.grad` of all trainable parameters; a missing gradient counts as zero.

        Of DTensors (FSDP2, tensor parallel) each rank sketches its own part, and `dim` floats are all-reduced over their
        device mesh: call it on all ranks; all get the sketch of the whole gradient.

        Args:
            against: the validation gradient, as `gradients()` of the validation side gives it (of DTensors: DTensors in the
                same placement), to take the exact product with; four more floats are all-reduced.

        Returns:
            float32 [dim] (or the Sketcher's dtype), on the device of the first parameter; with `against`, an `ExactSketch`
            of it, the exact product with the unit vector of `against` and the exact norm.

        Raises:
            SketchError: the set of trainable parameters or a shape changed since the Sketcher was made, a gradient is
                sparse or not finite, or `against` does not fit; the message names the parameter.
        """
        named = self.named()
        totals = self._totals(against)
        check_against(against, {name: tuple(p.shape) for name, p in named})
        for name, parameter in named:
            totals.join(parameter)
            part, mesh = self._part(name, parameter)
            other = None if against is None else against.get(name)
            check_placement(name, parameter.grad, other)
            local, _, other_mesh = (None, None, None) if other is None else local_part(other)
            if part is not None:
                totals.add(part, mesh, local)
            if local is not None:
                totals.add_other(local, other_mesh)
        total, figures = totals.sum(local_part(named[0][1])[0].device)
        check_finite(total, [(name, p.grad) for name, p in named])
        return total if against is None else exact_sketch(total, figures)

    @overload
    def from_local_grads(self, parts: LocalGradients, *, group: Any = None) -> Tensor: ...

    @overload
    def from_local_grads(self, parts: LocalGradients, *, group: Any = None, against: LocalGradients) -> ExactSketch: ...

    def from_local_grads(
        self, parts: LocalGradients, *, group: Any = None, against: LocalGradients | None = None
    ) -> Tensor | ExactSketch:
        """The sketch of a gradient of which each rank holds some parts, for any other sharding.

        Args:
            parts: this rank's parts, of whichever parameters, as `LocalGradient`s or plain tuples (name, global shape,
                offset, tensor); or an object whose `iter_local_grads()` gives them. A part that several ranks hold is to be
                given by one of them.
            group: the process group to add the sketches over; None for no communication (add them yourself: they are
                linear).
            against: this rank's parts of the validation gradient, one for each of `parts` and in their order.

        Returns:
            As `from_grads()`.

        Raises:
            SketchError: a name that is not sketched, another shape, a part outside it, inf or NaN, or parts of the
                validation gradient that lie elsewhere.
        """
        totals, seen, device = self._totals(against), [], next(self._model.parameters()).device
        for given, other in paired(parts, against):
            part = self._scaled(given._replace(name=canonical_name(given.name)))
            totals.add(part, None, None if other is None else other.tensor)
            if other is not None:
                totals.add_other(other.tensor, None)
            seen.append((part.name, part.tensor))
            device = part.tensor.device
        total, figures = totals.sum(device, group)
        check_finite(total, seen)
        return total if against is None else exact_sketch(total, figures)

    def gradients(self) -> dict[str, Tensor]:
        """A copy of the `.grad` of all trainable parameters by canonical name, to capture against.

        After the backward of the validation problems this is the full validation gradient. With a preconditioner, take it
        from `for_validation()`: the gradients are multiplied by what that side is multiplied by.
        """
        found = {}
        for name, parameter in self.named():
            if parameter.grad is not None:
                local, offset, _ = own_part(parameter.grad)
                part = self._scaled(LocalGradient(name, self.shapes[name], offset, local))
                found[name] = placed_as(parameter.grad, part.tensor.detach().clone())
        return found

    def _totals(self, against: object) -> Totals:
        return Totals(self.dim, self.dtype, self.table, fixed=self.reproducible, exact=against is not None)

    def _part(self, name: str, parameter: nn.Parameter) -> tuple[LocalGradient | None, Any]:
        """This rank's part of a parameter's gradient, and the mesh it is spread over."""
        gradient = parameter.grad
        if gradient is None:
            return None, None
        if gradient.layout != torch.strided:
            raise SketchError(
                f"the gradient of {name} is sparse ({gradient.layout}); build its embedding with sparse=False."
            )
        local, offset, mesh = local_part(gradient)
        return self._scaled(LocalGradient(name, self.shapes[name], offset, local)), mesh

    def _scaled(self, part: LocalGradient) -> LocalGradient:
        if self.shapes.get(part.name) != tuple(part.shape):
            raise SketchError(
                f"the local part of {part.name} is of shape {tuple(part.shape)}; the Sketcher was made for "
                f"{self.shapes.get(part.name, 'no parameter of that name')}. Give the whole parameter's shape."
            )
        check_part(part)
        if self._preconditioner is None:
            return part
        return self._preconditioner.scale(part, validation=self._validation)

    def scale(self, place: Place, like: Tensor) -> Tensor | None:
        """The preconditioner's multipliers at a place, [rows, C], as `like` is; None for none."""
        if self._preconditioner is None:
            return None
        return (self._whole or self._preconditioner).at(place, like, validation=self._validation)

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

        Of a model that FSDP2 shards, every rank opens the block, for rows of its own. `sketches` then are the same on all
        ranks: row p is of the sum over ranks of their losses, whatever FSDP2 divides `.grad` by.

        Args:
            problem_index: LongTensor [B], problem of each row of the batch; or [B, T], of each token of packed rows; -1
                for none.
            problems: number of problems; by default the largest index + 1. Under FSDP2 the same on every rank.
            keep_grad: add to `.grad` what the backward would have added without capture; else leave `.grad` alone.
            against: the full validation gradient, as `gradients()` gives it: then `captured.dots` are the exact products of
                each problem's gradient with its unit vector, and `captured.norms` the exact norms. All rows of a problem
                must be in this one batch, in one backward, on one rank. DTensors are gathered whole on every rank.
            onto: an earlier capture of the same problems, to whose sketches this batch's are added: for a problem whose
                rows are split over micro-batches. No memory but the sketches is needed.

        Raises:
            SketchError: here, for an index of another shape or range; in the block, when a parameter is used in a way
                that cannot be taken apart by problem (the message names it), a forward or a backward ran outside the
                block, captures nest, or a gradient is not finite. Under FSDP2, on entry and on all ranks alike, when they
                differ in `problems` or another argument.
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

    def sharding(self) -> Fsdp2 | None:
        """What FSDP2 holds of the model, None if nothing; then the multipliers of a preconditioner are gathered, once."""
        found = Fsdp2.of(self._model)
        if found is not None and self._preconditioner is not None and self._whole is None:
            self._whole = self._preconditioner.whole()
        return found

    def buffers(self) -> list[Tensor]:
        """The buffers of the model: they hold no rows of a batch."""
        return list(self._model.buffers())

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


def _refuse_flat_parameters(model: nn.Module) -> None:
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise SketchError(
            "the model is wrapped in FSDP1, whose parameters are flat pieces; make the Sketcher before wrapping it and use "
            "from_local_grads(fsdp1_local_grads(model)), or shard it with FSDP2 (fully_shard), which from_grads() takes."
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


def _projection(
    dim: int, seed: int, shapes: dict[str, tuple[int, ...]], preconditioner: Preconditioner | None
) -> Projection:
    named = "none" if preconditioner is None else preconditioner.name
    if preconditioner is not None:
        preconditioner.check(shapes)
    try:
        return Projection(dim=dim, seed=seed, parameters=parameters_digest(shapes), preconditioner=named)
    except InvalidValue as error:
        raise SketchError(str(error)) from None
