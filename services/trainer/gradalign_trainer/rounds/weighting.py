"""Generate, then weight: every training batch is scored, and its groups count by their weight."""

from __future__ import annotations

from statistics import fmean

from gradalign_trainer.curriculum import Choice
from gradalign_trainer.rollouts import ScoredRollouts
from gradalign_trainer.rounds.workshop import Workshop, scorer_figures

__all__ = ["weighted_round"]


def weighted_round(shop: Workshop) -> dict[str, float]:
    """Take the round's updates, each on a batch weighted by the scorer; the figures of the round."""
    config = shop.config
    shop.refresh_validation_if_due()
    drawn = shop.draw(config.updates_per_round * config.batch_problems)
    shop.observer.stage("update", config.updates_per_round)
    means, norms, choices = [], [], []
    for step in range(config.updates_per_round):
        batch = drawn[step * config.batch_problems : (step + 1) * config.batch_problems]
        scored = shop.rollouts(batch, config.group_size, "update", step)
        choice = _weigh(shop, scored)
        norms.append(shop.policy.update(scored, choice.weights))
        means.append(float(scored.rewards.mean()))
        choices.append(choice)
        shop.observer.advance()
    weight = fmean(fmean(choice.weights.values()) for choice in choices)
    figures = {"reward": fmean(means), "gradient_norm": fmean(norms), "weight": weight}
    return {**figures, **scorer_figures(shop.curriculum, choices[-1])}


def _weigh(shop: Workshop, scored: ScoredRollouts) -> Choice:
    ids = [problem.problem_id for problem in scored.problems]
    if shop.curriculum.needs_validation or not shop.curriculum.reachable():
        return shop.curriculum.choose_at_random(ids, len(ids), round_number=shop.round_number)
    measured = shop.policy.measure(scored)
    version = shop.policy.version
    return shop.curriculum.choose(measured, len(ids), policy_version=version, round_number=shop.round_number)
