"""What `GET /runs/{run}/rounds` will show of a committed request."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from gradalign import RefreshRequest, RoundRecord, ScoreRequest, SelectRequest
from gradalign_scorer.aggregation import ValidationGradient
from gradalign_scorer.scoring import Scored
from gradalign_scorer.selection import Picks, tenths
from gradalign_scorer.store import ValidationRecord

__all__ = ["refresh_round", "score_round", "select_round"]

_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def score_round(
    request: ScoreRequest, strategy: str, validation: ValidationRecord | None, scored: Scored, selected: int
) -> RoundRecord:
    """The record of a /score; the store numbers it."""
    summary: dict[str, Any] = {
        "strategy": strategy,
        "no_signal": int((~scored.signal).sum()),
        "rejected": len(scored.rejected),
    }
    if scored.alignments is not None and scored.ids:
        summary["alignment_quantiles"] = np.quantile(scored.alignments, _QUANTILES).tolist()
        if selected:
            summary["selected_alignment"] = float(scored.alignments[:selected].mean())
            summary["selected_tenths"] = tenths(scored.alignments, np.arange(selected))
    if scored.pass_rates is not None and scored.ids:
        summary["mean_pass_rate"] = float(scored.pass_rates.mean())
    if scored.reliability is not None:
        summary["reliability"] = scored.reliability.value
        if scored.reliability.advised_dim is not None:
            summary["advised_dim"] = scored.reliability.advised_dim
    if validation is not None:
        summary["validation_age"] = request.policy_version - validation.policy_version
    version = validation.version if validation else None
    return _record("score", request.policy_version, version, summary, problems=len(scored.ids), selected=selected)


def refresh_round(request: RefreshRequest, version: int, gradient: ValidationGradient) -> RoundRecord:
    """The record of a /refresh_validation."""
    summary = {
        "coherence": gradient.coherence,
        "no_signal": int((gradient.finite & ~gradient.used).sum()),
        "rejected": int((~gradient.finite).sum()),
    }
    return _record("refresh", request.policy_version, version, summary, problems=int(gradient.used.sum()), selected=0)


def select_round(request: SelectRequest, version: int | None, considered: int, picks: Picks) -> RoundRecord:
    """The record of a /select; `problems` is how many it chose from."""
    summary: dict[str, Any] = {"explored": len(picks.explored)}
    if picks.tenths is not None:
        summary["selected_tenths"] = picks.tenths
    return _record("select", request.policy_version, version, summary, problems=considered, selected=len(picks.indices))


def _record(
    kind: str, policy_version: int, version: int | None, summary: dict[str, Any], *, problems: int, selected: int
) -> RoundRecord:
    return RoundRecord(
        round=0,
        kind=kind,
        at=time.time(),
        policy_version=policy_version,
        validation_version=version,
        problems=problems,
        selected=selected,
        summary=summary,
    )
