"""The arithmetic world as a world: its regimes, and base models that are taught on the spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gradalign_trainer.world import Parts, Scale
from gradalign_trainer.worlds.regimes import REGIMES, make_world

if TYPE_CHECKING:
    from gradalign_trainer.worlds.basemodel import BaseTraining

__all__ = ["ArithmeticWorld"]

BASES = 3


@dataclass(frozen=True, slots=True)
class ArithmeticWorld:
    """Sums of two numbers, and a model of 110,000 parameters; see `World`.

    Attributes:
        base_steps: supervised updates of the base models; twice the demo's, since they are more alike then.
        scale: how many of everything the methods take.
    """

    base_steps: int = 2000
    scale: Scale = field(default_factory=Scale)

    name: ClassVar[str] = "arithmetic"
    regimes: ClassVar[Mapping[str, str]] = REGIMES
    headline: ClassVar[Sequence[str]] = ("misconception", "inverted", "imbalance", "low-utility")
    any_regime: ClassVar[str] = "misconception"
    settings: ClassVar[Mapping[str, Any]] = {}
    judged_by: ClassVar[str] = "the exact probability of the right answer, 512 problems"
    bases: ClassVar[int] = BASES

    def parts(self, regime: str, *, seed: int) -> Parts:
        """As `make_world`."""
        return make_world(regime, seed=seed)

    def source(self, regime: str, part: str, limit: int | None = None) -> str | Mapping[str, Any]:
        """`arithmetic:REGIME/PART`."""
        if limit is None:
            return f"arithmetic:{regime}/{part}"
        return {"kind": "arithmetic", "task": f"{regime}/{part}", "limit": limit}

    def base_facts(self, seed: int) -> Mapping[str, Any]:
        """The settings of the supervised training."""
        return asdict(self._training(seed))

    def base(self, cache: Path, seed: int) -> Path:
        """Trained first where the cache has none of these settings."""
        from gradalign_trainer.worlds.basemodel import base_model

        return base_model(cache, self._training(seed))

    def _training(self, seed: int) -> BaseTraining:
        from gradalign_trainer.worlds.basemodel import BaseTraining  # problems alone need no transformers

        return BaseTraining(steps=self.base_steps, seed=seed % BASES)
