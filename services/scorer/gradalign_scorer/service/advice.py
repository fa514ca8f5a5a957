"""What its owner should know about a run, in words. The page, `gradalign top` and `gradalign status` all show these."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

from gradalign import RoundRecord, RunState, RunWarning
from gradalign_scorer.store import RunStore

__all__ = ["advised", "run_warnings"]

_ROUNDS = 24
_OVER_SECONDS = 24 * 3600.0
_SILENT_SECONDS = 600.0
_SILENT_GAPS = 3
"""A silence is one that is this many times longer than any pause between the recent rounds."""
_OLD_VERSIONS = 32
"""Two half-lives of /select: a score of that age counts a quarter."""
_NO_SIGNAL = 0.25
_LOW_RELIABILITY = 0.9
_QUOTIENT_OFF = 0.1
_NOTHING = 0.1
"""A rollout reliability below this. The correlation of a ranking with the true one is its root: the best eighth gains at
most a third of what it could; and what others found of base models on clean pools, .02 to .06, is below."""
_FEWEST_PROBLEMS = 64
"""Of fewer, chance moves a reliability of 0 by more than 0.2."""
_CHANCE = 1.5
"""A coherence below this many times that of random directions tells of none."""


async def advised(store: RunStore, states: Sequence[RunState], now: float) -> list[RunState]:
    """The runs with their warnings; one read of the store for those that are not over.

    Args:
        store: that holds them.
        states: without warnings.
        now: Unix time in seconds.
    """
    active = [state.run_id for state in states if now - state.updated_at < _OVER_SECONDS]
    recent = dict(zip(active, await store.recent_rounds(active, _ROUNDS), strict=True)) if active else {}
    return [dataclasses.replace(s, warnings=run_warnings(s, recent.get(s.run_id, []), now)) for s in states]


def run_warnings(state: RunState, rounds: Sequence[RoundRecord], now: float) -> list[RunWarning]:
    """The warnings of a run, the most pressing first; none once it has been silent for a day, since it is over then.

    Args:
        state: of the run.
        rounds: its last ones, oldest first.
        now: Unix time in seconds.
    """
    if now - state.updated_at >= _OVER_SECONDS:
        return []
    found = (
        ("silent", _silence(state, rounds, now)),
        ("validation_old", _old_validation(state)),
        ("validation_incoherent", _incoherence(state)),
        ("products_off", _products_off(state)),
        ("rejected", _rejected(rounds)),
        ("sketch_small", _small_sketch(state, rounds)),
        ("nothing_to_rank", _nothing_to_rank(rounds)),
        ("no_signal", _no_signal(rounds)),
    )
    return [RunWarning(kind=kind, message=message) for kind, message in found if message]


def _silence(state: RunState, rounds: Sequence[RoundRecord], now: float) -> str | None:
    silent = now - state.updated_at
    times = [record.at for record in rounds]
    pause = max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)
    if silent < max(_SILENT_SECONDS, _SILENT_GAPS * pause):
        return None
    return f"the trainer has been silent for {_duration(silent)}"


def _old_validation(state: RunState) -> str | None:
    if state.validation_policy_version is None:
        return None
    age = state.policy_version - state.validation_policy_version
    return f"validation is {age} policy versions old" if age > _OLD_VERSIONS else None


def _incoherence(state: RunState) -> str | None:
    if state.coherence is None or state.validation_problems < 4:
        return None
    chance = 1 / math.sqrt(state.validation_problems)
    if state.coherence >= _CHANCE * chance:
        return None
    return (
        f"the {state.validation_problems} validation problems share no direction: their coherence is "
        f"{state.coherence:.2f}, and chance alone gives {chance:.2f}; use more of them, or more rollouts for each"
    )


def _products_off(state: RunState) -> str | None:
    quotient = state.products_quotient
    if quotient is None or abs(quotient - 1) <= _QUOTIENT_OFF:
        return None
    return (
        f"the products of the validation problems add up to {quotient:.2f} times the norm of their gradient, and should to "
        "1: take another step, central differences or higher precision, and the weights of the validation loss"
    )


def _nothing_to_rank(rounds: Iterable[RoundRecord]) -> str | None:
    known = [r for r in rounds if r.kind == "score" and r.summary.get("rollout_variance") is not None]
    problems = sum(record.problems for record in known)
    total = sum(record.problems * record.summary["alignment_variance"] for record in known)
    if problems < _FEWEST_PROBLEMS or not total:
        return None
    # Of the sums, not the mean of the rounds' own: those of small rounds are 0 or far above it by chance.
    left = max(0.0, 1 - sum(record.problems * record.summary["rollout_variance"] for record in known) / total)
    if left >= _NOTHING:
        return None
    return (
        f"nothing to rank here: a ranking from fresh rollouts would correlate with this one by {left:.2f}; take more "
        "rollouts of each problem, or choose by pass rate"
    )


def _small_sketch(state: RunState, rounds: Sequence[RoundRecord]) -> str | None:
    known = [record.summary for record in rounds if record.summary.get("reliability") is not None]
    if not known or known[-1]["reliability"] >= _LOW_RELIABILITY:
        return None
    latest = known[-1]
    dim = f" of k = {state.projection['dim']}" if state.projection else ""
    if latest.get("advised_dim"):
        return f"the sketch{dim} is too small for this run: k = {latest['advised_dim']} would do"
    return (
        f"the sketch{dim} hardly tells these problems apart: its reliability is {latest['reliability']:.2f}; take more "
        "rollouts of each problem, or send exact dots and norms"
    )


def _no_signal(rounds: Iterable[RoundRecord]) -> str | None:
    silent, scored = _shares(rounds, "no_signal")
    if not scored or silent / scored < _NO_SIGNAL:
        return None
    return f"{silent / scored:.0%} of the problems had no signal"


def _rejected(rounds: Iterable[RoundRecord]) -> str | None:
    rejected, taken = _shares(rounds, "rejected")
    if not rejected:
        return None
    return f"{rejected} of {taken + rejected} problems were left out for NaN or Inf in their gradients"


def _shares(rounds: Iterable[RoundRecord], name: str) -> tuple[int, int]:
    """The sum of a figure over the /score requests among `rounds`, and the problems that they took."""
    scores = [record for record in rounds if record.kind == "score"]
    return sum(record.summary.get(name, 0) for record in scores), sum(record.problems for record in scores)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} minutes"
    return f"{minutes // 60} hours" + (f" {minutes % 60} minutes" if minutes % 60 else "")
