"""Sketches of a model's gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.errors import InvalidValue, SketchError
from gradalign.projection import Projection, parameters_digest
from gradalign.sketch.capture import Capture
from gradalign.sketch.coverage import Coverage
from gradalign.sketch.matrix import add_matrix
from gradalign.sketch.names import canonical_name, trainable_parameters
from gradalign.sketch.shards import LocalGradient, blocks, is_sharded, local_part
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
        _refuse_flat_parameters(model)
        self._model = model
        self.dtype = dtype
        named = list(trainable_parameters(model))
        self.shapes = _distinct_shapes(named)
        self.projection = _projection(dim, seed, self.shapes)
        self.coverage = Coverage.of(model)
        self._tables: dict[tuple[str, torch.device], HashTable] = {}

    def from_grads(self) -> Tensor:
        """The sketch of the `.grad` of all trainable parameters; a missing gradient counts as zero.

        Of DTensors (FSDP2, tensor parallel) each rank sketches its own part, and `dim` floats are all-reduced over their
        device mesh: call it on all ranks; all get the sketch of the whole gradient.

        Returns:
            float32 [dim] (or the Sketcher's dtype), on the device of the first parameter.

        Raises:
            SketchError: the set of trainable parameters or a shape changed since the Sketcher was made, or a gradient
                is sparse or not finite; the message names the parameter.
        """
        named = self.named()
        totals = _Totals(self)
        for name, parameter in named:
            if parameter.grad is None:
                totals.join(parameter)
                continue
            if parameter.grad.layout != torch.strided:
                raise SketchError(
                    f"the gradient of {name} is sparse ({parameter.grad.layout}); build its embedding with sparse=False."
                )
            local, offset, mesh = local_part(parameter.grad)
            totals.add(LocalGradient(name, self.shapes[name], offset, local), mesh)
        total = totals.sum(local_part(named[0][1])[0].device)
        _check_finite(total, [(name, p.grad) for name, p in named])
        return total

    def from_local_grads(self, parts: Iterable[LocalGradient], *, group: Any = None) -> Tensor:
        """The sketch of a gradient of which each rank holds some parts, for any other sharding.

        Args:
            parts: this rank's parts, of whichever parameters. A part that several ranks hold is to be given by one of them.
            group: the process group to add the sketches over; None for no communication (add them yourself: they are
                linear).

        Returns:
            As `from_grads()`.

        Raises:
            SketchError: a name that is not sketched, another shape, a part outside it, or inf or NaN.
        """
        totals, seen, device = _Totals(self), [], torch.device("cpu")
        for part in parts:
            named = part._replace(name=canonical_name(part.name))
            if self.shapes.get(named.name) != tuple(part.shape):
                raise SketchError(
                    f"the local part of {named.name} is of shape {tuple(part.shape)}; the Sketcher was made for "
                    f"{self.shapes.get(named.name, 'no parameter of that name')}. Give the whole parameter's shape."
                )
            totals.add(named, None)
            seen.append((named.name, part.tensor))
            device = part.tensor.device
        total = totals.sum(device)
        if group is not None:
            torch.distributed.all_reduce(total, group=group)
        _check_finite(total, seen)
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


def _refuse_flat_parameters(model: nn.Module) -> None:
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise SketchError(
            "the model is wrapped in FSDP1, whose parameters are flat pieces; make the Sketcher before wrapping it and use "
            "from_local_grads(), or shard it with FSDP2 (fully_shard), which from_grads() reads as it is."
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


class _Totals:
    """Sketches of parts, by device and by the mesh that they are to be added over."""

    def __init__(self, sketcher: Sketcher) -> None:
        self._sketcher = sketcher
        self._sums: dict[tuple[torch.device, Any], Tensor] = {}

    def join(self, parameter: Tensor) -> None:
        """Take part in the sum over a parameter's mesh, with nothing to add."""
        if is_sharded(parameter):
            local, _, mesh = local_part(parameter)
            self._sum(local.device, mesh)

    def add(self, part: LocalGradient, mesh: Any) -> None:
        device = part.tensor.device
        total = self._sum(device, mesh)
        for table, matrix in blocks(self._sketcher.table(part.name, device), part):
            add_matrix(total, matrix, table)

    def sum(self, home: torch.device) -> Tensor:
        """The sum of all, over all ranks of each mesh."""
        total = torch.zeros(self._sketcher.dim, dtype=self._sketcher.dtype, device=home)
        for (_, mesh), part in self._sums.items():
            for axis in range(0 if mesh is None else mesh.ndim):
                torch.distributed.all_reduce(part, group=mesh.get_group(axis))
            total += part.to(home)
        return total

    def _sum(self, device: torch.device, mesh: Any) -> Tensor:
        key = (device, mesh)
        if key not in self._sums:
            self._sums[key] = torch.zeros(self._sketcher.dim, dtype=self._sketcher.dtype, device=device)
        return self._sums[key]


def _check_finite(total: Tensor, gradients: Sequence[tuple[str, Tensor | None]]) -> None:
    if torch.isfinite(total).all():
        return
    for name, gradient in gradients:
        if gradient is not None and not torch.isfinite(local_part(gradient)[0]).all():
            raise SketchError(
                f"the gradient of {name} holds inf or NaN; leave this problem out of the round and look at its loss "
                "(under fp16, unscale the gradients first)."
            )
    raise SketchError(
        "every gradient that this rank holds is finite, but the sketch is not: another rank holds inf or NaN, or the sketch "
        "overflows float32 (scale the loss down, or clip the gradients)."
    )
