"""Generate, then weight: every training batch is scored, and its groups count by their weight, or its rollouts by theirs.

Beside the backward of the update, scoring a batch takes a forward for products, or a forward and a backward for sketches.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from gradalign_trainer.curriculum.curriculum import Choice
from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.problems import Problem
from gradalign_trainer.rounds.workshop import Workshop, good_share, kind_alignments, scorer_figures

__all__ = ["weighted_round"]


def weighted_round(shop: Workshop) -> dict[str, float]:
    """Take the round's updates, each on a batch weighted by the scorer; the figures of the round."""
    config, policy = shop.config, shop.policy
    policy.meter.fresh = None
    shop.refresh_validation_if_due()
    shop.observer.stage("update", config.updates_per_round)
    means, norms, choices = [], [], []
    trained: list[Problem] = []
    for step, batch in enumerate(_batches(shop)):
        scored = shop.rollouts(batch, config.group_size, "update", step)
        choice = _weigh(shop, scored)
        joining = policy.meter.fresh if config.train_on_validation else None
        norms.append(policy.update(scored, choice.weights, joining, choice.rollout_weights))
        policy.meter.fresh = None  # the weights have moved
        means.append(float(scored.rewards.mean()))
        choices.append(choice)
        trained += batch
        shop.observer.advance()
    weight = fmean(fmean(choice.weights.values()) for choice in choices)
    figures = {"reward": fmean(means), "gradient_norm": fmean(norms), "weight": weight, **good_share(trained)}
    last = choices[-1]
    if last.ranking is not None:
        figures |= kind_alignments(shop.by_id, last.ranking)
    return {**figures, **scorer_figures(shop.curriculum, last)}


def _batches(shop: Workshop) -> Iterator[list[Problem]]:
    config = shop.config
    if config.proposals:
        yield from (shop.proposed(config.batch_problems, step) for step in range(config.updates_per_round))
        return
    drawn = shop.draw(config.updates_per_round * config.batch_problems)
    for step in range(config.updates_per_round):
        yield drawn[step * config.batch_problems : (step + 1) * config.batch_problems]


def _weigh(shop: Workshop, scored: ScoredRollouts) -> Choice:
    ids = [problem.problem_id for problem in scored.problems]
    if shop.curriculum.needs_validation or not shop.curriculum.reachable():
        return shop.curriculum.choose_at_random(ids, len(ids), round_number=shop.round_number)
    measured = shop.measured(lambda: shop.policy.meter.candidates(scored))
    if measured is None:
        return shop.curriculum.choose_at_random(ids, len(ids), round_number=shop.round_number)
    if shop.features is not None:
        measured = measured.with_features(shop.features.rows(ids))
    version = shop.policy.version
    return shop.curriculum.choose(measured, len(ids), policy_version=version, round_number=shop.round_number)
