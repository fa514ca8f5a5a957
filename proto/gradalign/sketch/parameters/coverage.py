"""What of a model is sketched, and what is not and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from gradalign.sketch.parameters.names import canonical_name

__all__ = ["Coverage"]


@dataclass(frozen=True)
class Coverage:
    """What of a model is sketched, by canonical parameter name.

    Attributes:
        sketched: number of elements of each sketched parameter.
        frozen: number of elements of each parameter that is left out because it does not require a gradient.
        tied: the further names of a weight that several modules share; it is sketched once, under the key.
    """

    sketched: Mapping[str, int]
    frozen: Mapping[str, int]
    tied: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, model: nn.Module) -> Coverage:
        """The coverage of a model as it stands."""
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(canonical_name(name))
        first = {canonical_name(name): parameter for name, parameter in model.named_parameters()}
        return cls(
            sketched={name: p.numel() for name, p in first.items() if p.requires_grad},
            frozen={name: p.numel() for name, p in first.items() if not p.requires_grad},
            tied={all_names[0]: tuple(all_names[1:]) for all_names in names.values() if len(all_names) > 1},
        )

    @property
    def parameters(self) -> int:
        """Number of sketched parameters; a tied weight counts once."""
        return len(self.sketched)

    @property
    def numel(self) -> int:
        """Number of sketched elements."""
        return sum(self.sketched.values())

    @property
    def share(self) -> float:
        """Sketched elements over all elements, in [0, 1]."""
        return self.numel / (self.numel + sum(self.frozen.values()))

    def __str__(self) -> str:
        text = f"{self.parameters} parameters, {self.numel:,} elements ({self.share:.1%} of the model) sketched"
        if self.frozen:
            text += f"; {len(self.frozen)} frozen parameters, {sum(self.frozen.values()):,} elements, left out"
        return text
