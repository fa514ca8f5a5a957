"""Settings of the plugin: the section `gradalign` of verl's configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from gradalign.wire.messages import AGGREGATIONS, GRADIENT_STRATEGIES, STRATEGIES
from gradalign_trainer.adapters.uses import Uses
from gradalign_trainer.curriculum.curriculum import ScorerAddress
from gradalign_trainer.settings import SettingsError, check_settings, limits, nearest, run_id_fault

__all__ = ["SECTION", "USES", "GradAlignSettings"]

SECTION = "gradalign"
USES = ("both", "select", "weight")


@dataclass(frozen=True, kw_only=True)
class GradAlignSettings(Uses):
    """How a run uses the scorer. Only the first two have to be given.

    Attributes:
        scorer_url: of the scorer, `http://host:port`; the driver alone has to reach it.
        run_id: name of the training job at the scorer; a job that resumes keeps it, another one takes another.
        trusted_sources: rows of these data sources are the validation problems, beside those with
            `extra_info.gradalign = "trusted"`.
        use: `select` orders the dataset by stored priorities, `weight` multiplies the advantages of each group by its weight
            in [0, 1], `both` does both.
        strategy: of the scorer; what `select` sorts by.
        rollout_weights: multiply each rollout's advantages by a weight of its own, instead of its group's.
        refresh_every: batches between those that validation problems join.
        trusted_share: the most of a batch that they take, in (0, 1).
        train_on_trusted: leave them in the loss, each group with weight 1; else nothing is trained on them.
        aggregation: of the validation gradients: `pooled` weighs their tokens alike, `mean` the problems.
        offload: keep the validation gradient, and the copy of the weights while products are taken, on the CPU.
        seed: of the order and of exploration.
        exploration: `select`'s share of problems never scored or longest unscored, in [0, 1].
        cooldown: steps for which a selected problem is selected again only when no other is left.
        half_life: steps after which a stored score has shrunk half-way to the mean.
        timeout: seconds to wait for a reply.
        retries: tries after the first, before a step goes on without the scorer.

    Raises:
        SettingsError: a value cannot be used; all faults are in it.
    """

    scorer_url: str
    run_id: str = field(metadata=limits(check=run_id_fault))
    trusted_sources: tuple[str, ...] = ()
    use: str = field(default="both", metadata=limits(choices=USES))
    strategy: str = field(
        default="shrunken", metadata=limits(choices=[name for name in STRATEGIES if name not in GRADIENT_STRATEGIES])
    )
    rollout_weights: bool = False
    refresh_every: int = field(default=8, metadata=limits(low=1))
    trusted_share: float = field(default=0.25, metadata=limits(above=0, high=0.9))
    train_on_trusted: bool = False
    aggregation: str = field(
        default="pooled", metadata=limits(choices=[name for name in AGGREGATIONS if name != "normalized"])
    )
    offload: bool = False
    seed: int = field(default=0, metadata=limits(low=0))
    exploration: float = field(default=0.25, metadata=limits(low=0, high=1))
    cooldown: int = field(default=4, metadata=limits(low=0))
    half_life: float = field(default=16.0, metadata=limits(above=0))
    timeout: float = field(default=10.0, metadata=limits(above=0))
    retries: int = field(default=1, metadata=limits(low=0))

    def __post_init__(self) -> None:
        check_settings(self, prefix=f"{SECTION}.")

    @classmethod
    def from_section(cls, section: Mapping[str, Any] | None) -> Self:
        """Of the section of verl's configuration, as plain values; None where it has none.

        Raises:
            SettingsError: `scorer_url` or `run_id` is missing, or a name is unknown.
        """
        known = [each.name for each in dataclasses.fields(cls)]
        given = dict(section or {})
        faults = [
            f"{SECTION}.{name} is unknown{nearest(name, known)}; known are {', '.join(known)}"
            for name in given
            if name not in known
        ]
        faults += [
            f"{SECTION}.{name} is missing; add +{SECTION}.{name}={example} to verl's command line"
            for name, example in (("scorer_url", "http://HOST:8000"), ("run_id", "MY-RUN"))
            if not given.get(name)
        ]
        if faults:
            raise SettingsError(faults, where=f"the section {SECTION!r} of verl's configuration")
        return cls(**given)

    def address(self, epoch: int) -> ScorerAddress:
        """Where the scorer is, for a writer of this fencing token; its key is `GRADALIGN_API_KEY` of the environment."""
        return ScorerAddress(self.scorer_url, None, self.timeout, self.retries, epoch)
