"""What `/metrics` shows of single runs: a bounded number of them, and only what is still so.

The gauges are read from the store at the scrape, so every replica shows the same, whichever of them the run talks to. The
counters are this process's own, and sum over replicas.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gradalign import RoundRecord, RunState, Unavailable
from gradalign_scorer.store import RunStore

__all__ = ["RunFigures"]

_IDLE_SECONDS = 6 * 3600.0
_FRESH_SECONDS = 1.0
"""Scrapes within this time share one look at the store: pages that watch a run ask as well."""
_LOOK_SECONDS = 5.0
"""Longest wait for the store; Prometheus gives a scrape ten seconds, and a scorer that waits too long counts as down."""
_SEARCH_SECONDS = 60.0
_ROUNDS = 8

_COUNTERS = (
    ("gradalign_run_scored_problems", "Problems of the run ranked by this scorer."),
    ("gradalign_run_zero_signal_problems", "Those of them whose sketch is zero."),
    ("gradalign_run_selected_problems", "Problems of the run selected by this scorer."),
)

_Reading = Callable[[RunState, RoundRecord | None], float | None]
_GAUGES: tuple[tuple[str, str, _Reading], ...] = (
    ("gradalign_run_last_commit_timestamp_seconds", "When the run last changed, Unix time.", lambda s, _: s.updated_at),
    ("gradalign_run_policy_version", "Highest policy version seen of the run.", lambda s, _: s.policy_version),
    ("gradalign_run_problems", "Problems of the run that were ever scored.", lambda s, _: s.problems),
    (
        "gradalign_validation_age_policy_versions",
        "Policy versions between the run's newest and its validation gradient.",
        lambda s, _: None if s.validation_policy_version is None else s.policy_version - s.validation_policy_version,
    ),
    ("gradalign_validation_coherence", "Norm of the mean unit validation gradient.", lambda s, _: s.coherence),
    (
        "gradalign_validation_problems",
        "Problems behind the validation gradient.",
        lambda s, _: s.validation_problems if s.validation_version else None,
    ),
    (
        "gradalign_sketch_reliability",
        "Expected correlation of sketched with exact alignments.",
        lambda s, _: s.reliability,
    ),
    (
        "gradalign_rollout_reliability",
        "Expected correlation of alignments with those of fresh rollouts.",
        lambda s, _: s.rollout_reliability,
    ),
    (
        "gradalign_products_quotient",
        "Sum of the validation problems' products over the norm of their gradient.",
        lambda s, _: s.products_quotient,
    ),
    ("gradalign_alignment_median", "Median alignment of the last /score.", lambda _, last: _median(last)),
    (
        "gradalign_selected_alignment_mean",
        "Mean alignment of what the last /score selected.",
        lambda _, last: last.summary.get("selected_alignment") if last else None,
    ),
    (
        "gradalign_pass_rate_mean",
        "Mean pass rate of the last /score.",
        lambda _, last: last.summary.get("mean_pass_rate") if last else None,
    ),
)


@dataclass(frozen=True)
class _Seen:
    state: RunState
    last: RoundRecord | None


class RunFigures:
    """Figures of the runs that changed last. Those that are deleted, or idle for six hours, leave.

    Args:
        store: of all runs.
        most: runs shown, and counted, at once; 0 shows none.
    """

    def __init__(self, store: RunStore, most: int) -> None:
        self._store = store
        self._most = most
        self._counts: OrderedDict[str, list[int]] = OrderedDict()
        self._seen: dict[str, _Seen] = {}
        self._found: list[str] = []
        self._next_look = self._next_search = -math.inf
        self._looking = asyncio.Lock()
        self._reachable = False

    def count_round(self, run_id: str, record: RoundRecord) -> None:
        """Count a committed request for its run."""
        if record.kind == "refresh" or not self._most:
            return
        counts = self._counts.setdefault(run_id, [0, 0, 0])
        self._counts.move_to_end(run_id)
        if record.kind == "score":
            counts[0] += record.problems
            counts[1] += record.summary["no_signal"]
        counts[2] += record.selected
        if len(self._counts) > self._most:
            self._counts.popitem(last=False)

    async def look(self) -> bool:
        """Read the runs again where that was not just done; whether the store answered."""
        async with self._looking:
            if time.monotonic() >= self._next_look:
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._read()
                    self._reachable = True
                except (Unavailable, TimeoutError):
                    # What was so before may be so no longer, and an absent value misleads nobody.
                    self._seen, self._reachable = {}, False
                self._next_look = time.monotonic() + _FRESH_SECONDS
            return self._reachable

    async def _read(self) -> None:
        await self._store.check()
        if not self._most:
            return
        oldest = time.time() - _IDLE_SECONDS
        if time.monotonic() >= self._next_search:
            self._found = await self._store.changed_since(oldest, self._most)
            self._next_search = time.monotonic() + _SEARCH_SECONDS
        names = list(dict.fromkeys([*self._found, *self._counts]))
        states = [s for s in await self._store.run_states(names) if s is not None and s.updated_at >= oldest]
        states = sorted(states, key=lambda state: (-state.updated_at, state.run_id))[: self._most]
        rounds = await self._store.recent_rounds([state.run_id for state in states], _ROUNDS)
        self._seen = {s.run_id: _Seen(s, _last_score(own)) for s, own in zip(states, rounds, strict=True)}
        for name in self._counts.keys() - self._seen.keys():
            del self._counts[name]

    def families(self, allows: Callable[[str], bool]) -> Iterator[Metric]:
        """The metrics of the runs that a key may see."""
        shown = {name: seen for name, seen in self._seen.items() if allows(name)}
        for name, text, reading in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["run"])
            for run, seen in shown.items():
                value = reading(seen.state, seen.last)
                if value is not None:
                    gauge.add_metric([run], value)
            yield gauge
        for place, (name, text) in enumerate(_COUNTERS):
            counter = CounterMetricFamily(name, text, labels=["run"])
            for run, counts in self._counts.items():
                if allows(run):
                    counter.add_metric([run], counts[place])
            yield counter


def _last_score(rounds: Sequence[RoundRecord]) -> RoundRecord | None:
    return next((record for record in reversed(rounds) if record.kind == "score"), None)


def _median(last: RoundRecord | None) -> float | None:
    quantiles: list[float] | None = last.summary.get("alignment_quantiles") if last else None
    return None if quantiles is None else quantiles[len(quantiles) // 2]
