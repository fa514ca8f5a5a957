"""Choose, then generate: score a pool, then train on the selection with fresh rollouts.

With the strategy `posterior` nothing is generated for the choice: the scorer draws from what it believes of the pool's
success rates, and is told those of the rollouts that were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from gradalign.errors import DirectionError
from gradalign_trainer.curriculum.curriculum import Choice
from gradalign_trainer.curriculum.outcomes import Outcomes
from gradalign_trainer.grpo.rollouts import ScoredRollouts
from gradalign_trainer.problems import Problem
from gradalign_trainer.rounds.workshop import Workshop, good_share, kind_alignments, scorer_figures

__all__ = ["chosen_round"]


def chosen_round(shop: Workshop) -> dict[str, float]:
    """Choose from a pool, then take the round's updates on the selection; the figures of the round."""
    config = shop.config
    pool = shop.draw(config.pool_size)
    choice = _choose(shop, pool, max(1, round(config.select_fraction * len(pool))))
    selected = [shop.by_id[problem_id] for problem_id in choice.selected]
    order = shop.cycled(selected, config.updates_per_round * config.batch_problems)
    shop.observer.stage("update", config.updates_per_round)
    means, norms = [], []
    for step in range(config.updates_per_round):
        batch = order[step * config.batch_problems : (step + 1) * config.batch_problems]
        batch += shop.trusted(config.batch_validation, step)
        scored = shop.rollouts(batch, config.group_size, "update", step)
        norms.append(_update(shop, scored))
        means.append(float(scored.rewards.mean()))
        shop.observer.advance()
    figures = {"reward": fmean(means), "gradient_norm": fmean(norms), **good_share(order)}
    if choice.ranking is not None:
        figures |= kind_alignments(shop.by_id, choice.ranking)
    return {**figures, **scorer_figures(shop.curriculum, choice)}


def _choose(shop: Workshop, pool: Sequence[Problem], count: int) -> Choice:
    ids = [problem.problem_id for problem in pool]
    if shop.config.by_pass_rates:
        return shop.curriculum.pick(
            ids,
            count,
            policy_version=shop.policy.version,
            half_life=shop.config.belief_half_life,
            round_number=shop.round_number,
        )
    if not shop.refresh_validation_if_due():
        return shop.curriculum.choose_at_random(ids, count, round_number=shop.round_number)
    shop.observer.stage("score", len(pool))
    scored = shop.rollouts(pool, shop.config.group_size, "pool", 0)
    measured = shop.measured(lambda: shop.policy.meter.candidates(scored, shop.observer.advance))
    version = shop.policy.version
    if measured is None:
        return shop.curriculum.choose_at_random(ids, count, round_number=shop.round_number)
    return shop.curriculum.choose(measured, count, policy_version=version, round_number=shop.round_number)


def _update(shop: Workshop, scored: ScoredRollouts) -> float:
    """The norm of the gradient; the problems trained on are scored too where the settings say so."""
    if shop.config.by_pass_rates:
        _observe(shop, scored)
    if not shop.config.score_updates or not shop.curriculum.adaptive:
        return shop.policy.update(scored)
    version = shop.policy.version
    try:
        norm, measured = shop.policy.update_and_measure(scored)
    except DirectionError as error:  # products come before the step
        shop.unmeasured(error)
        return shop.policy.update(scored)
    shop.curriculum.record(measured, policy_version=version)
    return norm


def _observe(shop: Workshop, scored: ScoredRollouts) -> None:
    """Tell the scorer how often the problems of the pool in a batch were solved; trusted ones that joined it are not its."""
    count = shop.config.batch_problems
    ids = [problem.problem_id for problem in scored.problems[:count]]
    outcomes = Outcomes.of(ids, scored.pass_rates[:count], scored.rollouts.group_size)
    shop.curriculum.observe(outcomes, policy_version=shop.policy.version, discount=shop.config.belief_discount)
