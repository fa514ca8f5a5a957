"""Generate, then filter: rollouts whose gradient contradicts the others of their batch are left out of the update.

The leave-one-out filter of DTV (arXiv 2609.35072), which needs no trusted problems: the batch is its own target. Comparing
the rollouts takes a forward and a backward beside those of the update.
"""

from __future__ import annotations

from statistics import fmean

from torch import Tensor

from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.rounds.workshop import Workshop, good_share

__all__ = ["filtered_round"]


def filtered_round(shop: Workshop) -> dict[str, float]:
    """Take the round's updates on problems drawn at random, each without the rollouts that it contradicts; the figures."""
    config, policy = shop.config, shop.policy
    drawn = shop.draw(config.updates_per_round * config.batch_problems)
    shop.observer.stage("update", config.updates_per_round)
    means, norms, kept = [], [], []
    for step in range(config.updates_per_round):
        batch = drawn[step * config.batch_problems : (step + 1) * config.batch_problems]
        scored = shop.rollouts(batch, config.group_size, "update", step)
        agreeing = policy.agreements(scored) >= 0
        norms.append(policy.update(scored, rollout_weights=_weights(scored, agreeing)))
        means.append(float(scored.rewards.mean()))
        kept.append(float(agreeing.double().mean()))
        shop.observer.advance()
    figures = {"reward": fmean(means), "gradient_norm": fmean(norms), "kept": fmean(kept)}
    return {**figures, **good_share(drawn)}


def _weights(scored: ScoredRollouts, agreeing: Tensor) -> dict[str, list[float]]:
    rows = agreeing.double().tolist()
    return {problem.problem_id: row for problem, row in zip(scored.problems, rows, strict=True)}
