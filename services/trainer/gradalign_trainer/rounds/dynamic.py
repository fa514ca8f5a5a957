"""Draw until the batch is full of groups that have a signal: the dynamic sampling of DAPO (arXiv 2503.14476).

Each draw asks for as many problems as are still missing, so no group with a signal is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from statistics import fmean

from gradalign_trainer.grpo.rollouts import ScoredRollouts, join_rollouts
from gradalign_trainer.problems import Problem
from gradalign_trainer.rounds.workshop import Workshop, good_share

__all__ = ["dynamic_round"]

MOST_DRAWS = 10  # a batch; then it is trained on as it is


def dynamic_round(shop: Workshop) -> dict[str, float]:
    """Take the round's updates, each on a batch whose groups all have a signal; the figures of the round."""
    config = shop.config
    order = cycle(shop.draw(len(shop.candidates)))
    shop.observer.stage("update", config.updates_per_round)
    means, norms, shares = [], [], []
    trained: list[Problem] = []
    for step in range(config.updates_per_round):
        batch, drawn = _full_batch(shop, order, step)
        norms.append(shop.policy.update(batch))
        means.append(float(batch.rewards.mean()))
        shares.append(len(batch.problems) / drawn)
        trained += batch.problems
        shop.observer.advance()
    figures = {"reward": fmean(means), "gradient_norm": fmean(norms), "kept": fmean(shares)}
    return {**figures, **good_share(trained)}


def _full_batch(shop: Workshop, order: Iterator[Problem], step: int) -> tuple[ScoredRollouts, int]:
    """Groups with a signal, and how many were drawn for them; without any, the last draw as it is."""
    wanted, drawn = shop.config.batch_problems, 0
    kept: list[ScoredRollouts] = []
    for draw in range(MOST_DRAWS):
        missing = wanted - sum([len(part.problems) for part in kept])
        if not missing:
            break
        scored = shop.rollouts(list(islice(order, missing)), shop.config.group_size, "update", (step, draw))
        drawn += missing
        signal = scored.signal.nonzero()[:, 0].tolist()
        if signal:
            kept.append(scored.groups(signal))
    return join_rollouts(kept) if kept else scored, drawn
