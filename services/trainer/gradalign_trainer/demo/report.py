"""What came of the demo: learning curves from the runs' metrics, and what the scorer saw from the scorer itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from gradalign import Client
from gradalign.wire.replies import ProblemState
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.datasets import load_problems
from gradalign_trainer.fallbacks import Fallbacks
from gradalign_trainer.reporting.plots import Curve
from gradalign_trainer.reporting.tracking import read_metrics

__all__ = ["DemoReport", "Seen", "read_report"]

PAGE = 1000
KINDS: Mapping[str, tuple[str, str]] = {
    "inverted": ("true rewards", "inverted rewards"),
    "imbalance": ("on target", "off target"),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """One kind of problems as the scorer saw it.

    Attributes:
        kind: what sets these problems apart.
        scored: how often problems of the kind were scored.
        alignment: mean of their last alignments.
        selected: how often they were selected.
    """

    kind: str
    scored: int
    alignment: float
    selected: int


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Results of the demo.

    Attributes:
        metrics: (regime, strategy) -> lines of the run's metrics, oldest first.
        seen: regime -> what the scorer saw in its cosine run, the wanted kind first.
    """

    metrics: Mapping[tuple[str, str], list[dict[str, Any]]]
    seen: Mapping[str, list[Seen]]

    def curves(self, regime: str) -> dict[str, Curve]:
        """Strategy -> held-out pass rates over updates."""
        found: dict[str, Curve] = {}
        for (own, strategy), lines in self.metrics.items():
            if own == regime:
                told = [line for line in lines if "pass_rate" in line]
                found[strategy] = [line["policy_version"] for line in told], [line["pass_rate"] for line in told]
        return found

    def final(self, regime: str, strategy: str) -> float:
        """Held-out pass rate at the end of a run."""
        return float(self.curves(regime)[strategy][1][-1])

    def show(self, console: Console) -> None:
        """Print both tables."""
        results = Table(title="held-out pass@1", title_justify="left")
        for name in ("regime", "base model", "random", "cosine", "difference"):
            results.add_column(name, justify="left" if name == "regime" else "right")
        for regime in self.seen:
            base = self.curves(regime)["cosine"][1][0]
            random, cosine = self.final(regime, "random"), self.final(regime, "cosine")
            rates = (f"{rate:.3f}" for rate in (base, random, cosine))
            results.add_row(regime, *rates, f"{cosine - random:+.3f}")
        console.print(results)
        saw = Table(title="what the scorer saw in the cosine runs", title_justify="left")
        for name in ("regime", "problems", "scored", "alignment", "of scored", "of selected"):
            saw.add_column(name, justify="left" if name in ("regime", "problems") else "right")
        for regime, kinds in self.seen.items():
            scored, selected = sum(kind.scored for kind in kinds), sum(kind.selected for kind in kinds)
            for kind in kinds:
                shares = f"{kind.scored / max(scored, 1):.0%}", f"{kind.selected / max(selected, 1):.0%}"
                saw.add_row(regime, kind.kind, f"{kind.scored}", f"{kind.alignment:+.3f}", *shares)
        console.print(saw)
        for regime in self.seen:
            console.print(self._scorer_line(regime), highlight=False, soft_wrap=True)

    def _scorer_line(self, regime: str) -> str:
        lines = self.metrics[regime, "cosine"]

        def mean(name: str) -> str:
            told = [line[name] for line in lines if line.get(name) is not None]
            return f"{fmean(told):.2f}" if told else "-"

        reasons = Fallbacks.from_figures(lines[-1])
        return (
            f"{regime}: validation coherence {mean('coherence')}, sketch reliability {mean('reliability')} (means over "
            f"rounds), {reasons.told()}"
        )


def read_report(configs: Mapping[tuple[str, str], TrainConfig], scorer_url: str) -> DemoReport:
    """Collect the results of runs that are over.

    Args:
        configs: (regime, strategy) -> settings of its run.
        scorer_url: of the scorer that they used.

    Raises:
        GradAlignError: the scorer is away, or metrics cannot be read.
    """
    metrics = {key: read_metrics(config.output) for key, config in configs.items()}
    seen = {
        regime: _seen(regime, list(_problems(scorer_url, config)), _good(config))
        for (regime, strategy), config in configs.items()
        if strategy == "cosine"
    }
    return DemoReport(metrics, seen)


def _problems(scorer_url: str, config: TrainConfig) -> Iterator[ProblemState]:
    with Client(scorer_url, run_id=config.run_id, api_key=config.scorer_api_key) as client:
        cursor = None
        while True:
            page = client.problems(cursor=cursor, limit=PAGE)
            yield from page.problems
            cursor = page.next
            if cursor is None:
                return


def _good(config: TrainConfig) -> set[str]:
    pool = load_problems(config.pool, seed=config.seed).problems
    return {problem.problem_id for problem in pool if problem.extra["good"]}


def _seen(regime: str, problems: list[ProblemState], good: set[str]) -> list[Seen]:
    wanted, unwanted = KINDS[regime]
    found = []
    for kind, is_wanted in ((wanted, True), (unwanted, False)):
        ours = [problem for problem in problems if (problem.problem_id in good) is is_wanted]
        alignments = [problem.alignment for problem in ours if problem.alignment is not None]
        found.append(
            Seen(
                kind=kind,
                scored=sum(problem.times_scored for problem in ours),
                alignment=fmean(alignments) if alignments else 0.0,
                selected=sum(problem.times_selected for problem in ours),
            )
        )
    return found
