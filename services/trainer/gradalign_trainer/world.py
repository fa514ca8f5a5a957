"""What a world is: problems with regimes that spoil their pool, a base model, and the scale that methods are compared at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from gradalign_trainer.problems import Problem
from gradalign_trainer.settings import SettingsError, check_settings, limits

__all__ = ["Parts", "Scale", "World", "at_updates"]

EVALUATIONS = 4
"""Of a run of another length, in a world whose methods say themselves how often."""

_COUNT = limits(low=1)


@dataclass(frozen=True, slots=True)
class Parts:
    """The problems of one run; no question is in two of the three parts.

    Attributes:
        pool: candidates to train on, as the regime has them.
        validation: small and trusted, all of the target.
        heldout: what the run is judged by, all of the target.
    """

    pool: Sequence[Problem]
    validation: Sequence[Problem]
    heldout: Sequence[Problem]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How many of everything the methods of a grid take; the values here are those of the arithmetic world.

    Attributes:
        updates: that methods are compared at.
        updates_per_round: of methods that choose a round's problems together.
        rollouts: that they are compared at too.
        pool: problems of a pool.
        candidates: that a round chooses from.
        batch: problems in an update of what was chosen.
        large_batch: problems in an update of methods that take what comes, or weigh it.
        trusted: validation problems that there are.
        trusted_turn: of them, in each validation gradient of methods that weigh.
        group_size: rollouts of a problem.
        validation_rollouts: of a validation problem, for methods that choose.
        proposed_from: problems that a batch is proposed from.
        again: problems of the small pool whose problems come again and again.
        evaluations: of a run up to the equal updates, behind the first; None: as often as each method says.

    Raises:
        SettingsError: a number is not a whole one from 1; all faults are in it.
    """

    updates: int = field(default=60, metadata=_COUNT)
    updates_per_round: int = field(default=2, metadata=_COUNT)
    rollouts: int = field(default=61_440, metadata=_COUNT)
    pool: int = field(default=4096, metadata=_COUNT)
    candidates: int = field(default=128, metadata=_COUNT)
    batch: int = field(default=16, metadata=_COUNT)
    large_batch: int = field(default=64, metadata=_COUNT)
    trusted: int = field(default=48, metadata=_COUNT)
    trusted_turn: int = field(default=16, metadata=_COUNT)
    group_size: int = field(default=8, metadata=_COUNT)
    validation_rollouts: int = field(default=16, metadata=_COUNT)
    proposed_from: int = field(default=512, metadata=_COUNT)
    again: int = field(default=256, metadata=_COUNT)
    evaluations: int | None = field(default=None, metadata=_COUNT)

    def __post_init__(self) -> None:
        check_settings(self, prefix="scale.")


class World(Protocol):
    """A world as the grid, the data and the report see it: a dataclass that survives the way into another process."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """One noun; results of a world are kept apart by it."""

    @property
    def regimes(self) -> Mapping[str, str]:
        """Name -> what the regime does to the pool."""

    @property
    def headline(self) -> Sequence[str]:
        """The regimes that a grid plays where none are named."""

    @property
    def any_regime(self) -> str:
        """A regime for runs that see nothing of it: trusted and held-out problems are the same in all."""

    @property
    def scale(self) -> Scale:
        """How many of everything the methods take."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of `TrainConfig` for this world's runs, as JSON writes them: the reward, limits of generation."""

    @property
    def judged_by(self) -> str:
        """What the held-out pass rate is, for the report."""

    @property
    def bases(self) -> int:
        """Base models that there are; a run of seed s begins with base s modulo this."""

    def parts(self, regime: str, *, seed: int) -> Parts:
        """The problems of a run, prompts as the model reads them; the same for the same seed, on every machine."""

    def source(self, regime: str, part: str, limit: int | None = None) -> str | Mapping[str, Any]:
        """What `data.pool` and the like say for a part of the problems, or for the first `limit` of it."""

    def base_facts(self, seed: int) -> Mapping[str, Any]:
        """What decides the base model of a seed, as JSON writes it; a digest of it stands in every result."""

    def base(self, cache: Path, seed: int) -> Path:
        """The folder of the base model of a seed; made in the cache first where it is not there.

        Raises:
            GradAlignError: it cannot be had.
        """


def at_updates(world: World, updates: int) -> World:
    """The world with runs of another length; equal rollouts grow or shrink with it.

    Args:
        world: any.
        updates: that methods are compared at.

    Raises:
        SettingsError: a round of it does not end there.
    """
    scale = world.scale
    if updates % scale.updates_per_round:
        raise SettingsError(
            [
                f"--updates {updates}: a round in the world {world.name} has {scale.updates_per_round} updates; expected a "
                "multiple of that."
            ],
            where="the arguments",
        )
    rollouts = max(1, round(scale.rollouts * updates / scale.updates))
    return replace(
        world, scale=replace(scale, updates=updates, rollouts=rollouts, evaluations=scale.evaluations or EVALUATIONS)
    )
