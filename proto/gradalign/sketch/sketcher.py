"""Sketches of a model's gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradalign.errors import SketchError
from gradalign.projection import Projection, parameters_digest
from gradalign.sketch.names import canonical_name, trainable_parameters
from gradalign.sketch.tables import HashTable

__all__ = ["Coverage", "Sketcher"]


@dataclass(frozen=True)
class Coverage:
    """What of a model is sketched.

    Attributes:
        sketched: elements by canonical parameter name.
        frozen: elements by canonical name of the parameters that are not trained and so not sketched.
        tied: further names of sketched weights, by the name they go under.
    """

    sketched: Mapping[str, int]
    frozen: Mapping[str, int]
    tied: Mapping[str, tuple[str, ...]]

    @property
    def share(self) -> float:
        """Sketched elements over all elements, in [0, 1]."""
        ours, rest = sum(self.sketched.values()), sum(self.frozen.values())
        return ours / (ours + rest)


def _coverage(model: nn.Module) -> Coverage:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(canonical_name(name))
    first = {canonical_name(name): parameter for name, parameter in model.named_parameters()}
    return Coverage(
        sketched={name: p.numel() for name, p in first.items() if p.requires_grad},
        frozen={name: p.numel() for name, p in first.items() if not p.requires_grad},
        tied={all_names[0]: tuple(all_names[1:]) for all_names in names.values() if len(all_names) > 1},
    )


class Sketcher:
    """Sketches the gradient of every trainable parameter of a model into `dim` buckets (layout 1).

    The sketch is linear and depends on (seed, canonical name, global index) alone: see `gradalign.countsketch`.

    Args:
        model: any module; wrapper prefixes (DDP, FSDP, PEFT, torch.compile) are stripped from its parameters' names.
        dim: number of buckets k; the error of a cosine c is about (1 - c^2)/sqrt(k).
        seed: of the hashes; all sketches of a run need the same.
        dtype: that sketches are accumulated and returned in; float32, or float64 for tests.

    Raises:
        SketchError: nothing is trainable, or two parameters have one canonical name.
        InvalidValue: dim or seed out of range.
    """

    def __init__(self, model: nn.Module, dim: int = 8192, seed: int = 0, *, dtype: torch.dtype = torch.float32) -> None:
        self._model = model
        self._dtype = dtype
        named = list(trainable_parameters(model))
        self._shapes = {name: tuple(parameter.shape) for name, parameter in named}
        if not named:
            raise SketchError("the model has no parameter with requires_grad=True; unfreeze what is trained first.")
        if len(self._shapes) != len(named):
            raise SketchError(f"several parameters share a canonical name among {sorted(n for n, _ in named)}.")
        self.projection = Projection(dim=dim, seed=seed, parameters=parameters_digest(self._shapes))
        self.coverage = _coverage(model)
        self._tables: dict[tuple[str, torch.device], HashTable] = {}

    def from_grads(self) -> Tensor:
        """The sketch of the `.grad` of all trainable parameters; a missing gradient counts as zero.

        Returns:
            float32 [dim], on the device of the first parameter.

        Raises:
            SketchError: the set of trainable parameters or a shape changed, or a gradient is sparse or not finite; the
                message names the parameter.
        """
        named = list(trainable_parameters(self._model))
        self._check_unchanged(named)
        total = torch.zeros(self.projection.dim, dtype=self._dtype, device=named[0][1].device)
        for name, parameter in named:
            if parameter.grad is None or parameter.grad.numel() == 0:
                continue
            if parameter.grad.is_sparse:
                raise SketchError(f"the gradient of {name} is sparse; make its embedding with sparse=False.")
            part = torch.zeros_like(total, device=parameter.device)
            self._table(name, parameter.device).add_to(part, parameter.grad)
            if not torch.isfinite(part).all():
                raise SketchError(
                    f"the gradient of {name} holds inf or NaN; leave this problem out of the round, or look at its loss."
                )
            total += part.to(total.device)
        return total

    def _table(self, name: str, device: torch.device) -> HashTable:
        key = (name, device)
        if key not in self._tables:
            projection, shape = self.projection, self._shapes[name]
            self._tables[key] = HashTable.of(
                name, shape, dim=projection.dim, seed=projection.seed, device=device, dtype=self._dtype
            )
        return self._tables[key]

    def _check_unchanged(self, named: list[tuple[str, nn.Parameter]]) -> None:
        shapes = {name: tuple(parameter.shape) for name, parameter in named}
        for name in sorted(shapes.keys() | self._shapes.keys()):
            if shapes.get(name) != self._shapes.get(name):
                raise SketchError(
                    f"{name} was {self._shapes.get(name, 'not trainable')} when the Sketcher was made and is "
                    f"{shapes.get(name, 'not trainable')} now; make a new Sketcher (and a new run: old sketches do "
                    "not compare with its own)."
                )
