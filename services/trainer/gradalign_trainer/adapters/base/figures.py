"""What is logged of a batch, under `gradalign/`."""

from __future__ import annotations

from statistics import fmean

from gradalign.wire.replies import Ranking
from gradalign_trainer.curriculum.failopen import FailOpen

__all__ = ["batch_figures"]


def batch_figures(link: FailOpen, ranking: Ranking | None) -> dict[str, float]:
    """Figures of a batch by name.

    Args:
        link: to the scorer.
        ranking: of the batch; None where it went on without one.
    """
    figures = {
        "fallback": float(ranking is None),
        **link.reasons.figures(),
        "seconds_scorer": link.seconds,
    }
    if link.validation is not None and link.validation.coherence is not None:
        figures["coherence"] = link.validation.coherence
    if link.validation is not None and link.validation.products_quotient is not None:
        figures["quotient"] = link.validation.products_quotient
    if ranking is None:
        return figures
    figures["weight"] = fmean(ranking.weights)
    figures["no_signal"] = len(ranking.no_signal) / len(ranking.problem_ids)
    if ranking.alignments:
        figures["alignment"] = fmean(ranking.alignments)
    if ranking.reliability is not None:
        figures["reliability"] = ranking.reliability
    if ranking.rollout_reliability is not None:
        figures["rollout_reliability"] = ranking.rollout_reliability
    return figures
