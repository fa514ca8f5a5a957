"""How many trusted problems join a draw."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gradalign_trainer.adapters.verl.problems import ProblemRows

__all__ = ["trusted_share"]


def trusted_share(rows: ProblemRows, size: int, share: float, rng: random.Random) -> Sequence[str]:
    """The trusted problems that join a draw of `size`: at most that share of it, at least one, and never all of it."""
    most = max(1, min(int(size * share), len(rows.trusted)))
    return rng.sample(list(rows.trusted), min(most, size - 1))
