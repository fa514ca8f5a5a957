"""What rollouts say of problems without any gradient: how often each was solved, on its way to the scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from gradalign import Client
from gradalign.wire.replies import Ranking

__all__ = ["Outcomes"]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Pass rates of problems; entry i everywhere is problem i.

    Attributes:
        problem_ids: distinct ids.
        pass_rates: mean rewards, clipped to [0, 1].
        rollouts: group sizes.
    """

    problem_ids: Sequence[str]
    pass_rates: Sequence[float]
    rollouts: Sequence[int]

    @classmethod
    def of(cls, problem_ids: Sequence[str], pass_rates: Sequence[float], group_size: int) -> Self:
        """Of groups of one size; two groups of a problem are one of twice the size."""
        rates: dict[str, list[float]] = {}
        for problem_id, rate in zip(problem_ids, pass_rates, strict=True):
            rates.setdefault(problem_id, []).append(rate)
        means = [sum(each) / len(each) for each in rates.values()]
        return cls(list(rates), means, [group_size * len(each) for each in rates.values()])

    def send(self, client: Client, *, policy_version: int, discount: float) -> Ranking:
        """Renew the scorer's beliefs; errors as of `Client.score`."""
        return client.score(
            self.problem_ids,
            pass_rates=self.pass_rates,
            rollouts=self.rollouts,
            policy_version=policy_version,
            discount=discount,
        )
