"""What is believed of each problem's success rate: a Beta distribution that forgets, after MoPPS (arXiv 2507.04632).

Before anything is known it is Beta(1, 1), the uniform one. A group of n rollouts of mean reward r adds n r successes and
n (1 - r) failures, and leaves a share `discount` of those before: alpha' = discount alpha + (1 - discount) + n r, and beta
likewise. Only what exceeds the 1 is kept, which makes that a discounted sum.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

__all__ = ["Beliefs", "observations", "parameters"]

Floats = npt.NDArray[np.float64]

# A stored belief: successes, failures, policy version; commit_scores.lua has the same layout.
_LAYOUT = struct.Struct("<ddd")
_NONE = _LAYOUT.pack(0.0, 0.0, -1.0)


def observations(pass_rates: npt.ArrayLike, rollouts: npt.ArrayLike) -> Floats:
    """Successes and failures of groups, [n, 2], from their mean rewards [n] in [0, 1] and sizes [n].

    A mean reward that is no multiple of 1/size counts as that share of the size: rewards between 0 and 1 are successes in
    part.
    """
    rates, counts = np.asarray(pass_rates, dtype=np.float64), np.asarray(rollouts, dtype=np.float64)
    return np.stack([counts * rates, counts * (1 - rates)], axis=1)


def parameters(packed: bytes | None) -> list[float] | None:
    """Alpha and beta of a stored belief; None for none."""
    if packed is None:
        return None
    successes, failures, _ = _LAYOUT.unpack(packed)
    return [1 + successes, 1 + failures]


@dataclass(frozen=True)
class Beliefs:
    """Beliefs about n problems.

    Attributes:
        counts: discounted successes and failures of each, [n, 2], without those of the prior.
        versions: policy versions at which each was last observed, [n]; -1 for never.
    """

    counts: Floats
    versions: Floats

    @classmethod
    def none(cls, count: int) -> Self:
        """Of problems that nothing is known of."""
        return cls(np.zeros((count, 2)), np.full(count, -1.0))

    @classmethod
    def unpack(cls, records: Sequence[bytes | None]) -> Self:
        """Of stored records; None for a problem that has none."""
        table = np.frombuffer(b"".join(record or _NONE for record in records), dtype="<f8").reshape(-1, 3)
        return cls(table[:, :2].astype(np.float64), table[:, 2].astype(np.float64))

    def observed(self, found: Floats, discount: float) -> Beliefs:
        """Renewed by the successes and failures of a group each, [n, 2]; the script of a commit does the same."""
        return Beliefs(discount * self.counts + found, self.versions)

    def faded(self, policy_version: int, half_life: float) -> Beliefs:
        """With rollouts counting half for every `half_life` policy versions since they were last added to."""
        age = np.maximum(policy_version - self.versions, 0.0)
        return Beliefs(self.counts * np.exp2(-age / half_life)[:, None], self.versions)

    @property
    def alpha(self) -> Floats:
        """First parameters of the Beta distributions, [n]."""
        return 1 + self.counts[:, 0]

    @property
    def beta(self) -> Floats:
        """Second parameters, [n]."""
        return 1 + self.counts[:, 1]
