"""Products of rollouts with the validation gradient, on their way to the scorer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gradalign import Client
from gradalign.wire.replies import Ranking, RefreshReply
from gradalign_trainer.curriculum.measured import first_rows

__all__ = ["MeasuredProducts"]


_OF_SKETCHES = ("projection", "aggregation", "decay", "decay_version")


@dataclass(frozen=True, slots=True)
class MeasuredProducts:
    """Products of problems' rollouts, in place of sketches; entry i everywhere is problem i.

    Attributes:
        problem_ids: distinct ids, P of them.
        products: of each problem's rollouts; 0 for a rollout without an advantage.
        tokens: completion tokens of the group.
        pass_rates: mean rewards, clipped to [0, 1].
        length: of validation problems, the norm of their gradient, which products and `carried` add up to; else None.
        carried: what an earlier gradient that decays into that one adds to the length.
        version: of candidates, the validation version that the products are with; else None.
        features: [P, F], what is known of each problem before it is tried; None where nothing is.
        norms: of candidates' gradients, of the kind `norms_kind`; None where they are not known.
        rollout_weights: of candidates, whether the scorer is asked for a weight for each rollout.
    """

    problem_ids: Sequence[str]
    products: Sequence[Sequence[float]]
    tokens: Sequence[int]
    pass_rates: Sequence[float]
    length: float | None = None
    carried: float | None = None
    version: int | None = None
    features: Tensor | None = None
    norms: Sequence[float] | None = None
    norms_kind: str | None = None
    rollout_weights: bool = False

    @property
    def signal(self) -> bool:
        """Whether any gradient is not zero."""
        return any(any(group) for group in self.products)

    def refresh(self, client: Client, **settings: Any) -> RefreshReply:
        """Send them as those of validation problems; settings of sketches stay here. Errors: `Client.refresh_validation`."""
        return client.refresh_validation(
            self.problem_ids,
            products=self.products,
            lengths=self.length,
            carried=self.carried,
            tokens=self.tokens,
            rollouts=[len(group) for group in self.products],
            **_without_sketches(settings),
        )

    def score(self, client: Client, **settings: Any) -> Ranking:
        """Send them as those of candidates; settings of sketches stay here. Errors: `Client.score`."""
        return client.score(
            self.problem_ids,
            products=self.products,
            products_version=self.version,
            tokens=self.tokens,
            rollouts=[len(group) for group in self.products],
            pass_rates=self.pass_rates,
            features=self.features,
            norms=self.norms,
            norms_kind=self.norms_kind,
            rollout_weights=self.rollout_weights,
            **_without_sketches(settings),
        )

    def distinct(self) -> MeasuredProducts:
        """The same with only the first entry of every problem."""
        first = first_rows(self.problem_ids)
        return replace(
            self,
            problem_ids=[self.problem_ids[row] for row in first],
            products=[self.products[row] for row in first],
            tokens=[self.tokens[row] for row in first],
            pass_rates=[self.pass_rates[row] for row in first],
            features=None if self.features is None else self.features[first],
            norms=None if self.norms is None else [self.norms[row] for row in first],
        )

    def with_features(self, features: Tensor) -> MeasuredProducts:
        """The same with features of the problems, [P, F]."""
        return replace(self, features=features)


def _without_sketches(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _OF_SKETCHES}
