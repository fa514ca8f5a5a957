"""The demo: GRPO on a tiny model in two regimes, choosing problems at random and by alignment.

    inverted    the rewards of half of the pool are inverted
    imbalance   92% of the pool is off-target

Everything is real and made on the spot: a base model trained by supervision, a scorer process with its store, and four
training runs, two at a time, each a process of its own. `gradalign demo` runs it.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.curriculum.localscorer import local_scorer
from gradalign_trainer.demo.report import DemoReport, read_report
from gradalign_trainer.reporting.plots import plot_curves
from gradalign_trainer.reporting.progress import show_progress
from gradalign_trainer.runs.modelsource import model_source
from gradalign_trainer.runs.parallel import run_parallel
from gradalign_trainer.worlds.regimes import REGIMES

__all__ = ["DemoSettings", "demo_config", "run_demo"]

STRATEGIES = ("cosine", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """What the demo runs.

    Attributes:
        output: folder of metrics, checkpoints and the picture.
        seed: of problems and rollouts.
        scorer_url: scorer to use; None starts one.
        regimes: keys of `worlds.REGIMES`.
        workers: runs at a time.
        changes: settings of `TrainConfig` to change, in all runs.
    """

    output: Path
    seed: int = 0
    scorer_url: str | None = None
    regimes: Sequence[str] = ("inverted", "imbalance")
    workers: int = 2
    changes: Mapping[str, Any] = field(default_factory=dict)

    def with_rounds(self, rounds: int) -> DemoSettings:
        """The same with another number of rounds."""
        return replace(self, changes={**self.changes, "rounds": rounds})


def demo_config(regime: str, strategy: str, output: Path, *, seed: int = 0, **changes: Any) -> TrainConfig:
    """The settings of one run of the demo; `services/trainer/configs/demo-*.toml` spell them out.

    Args:
        regime: key of `worlds.REGIMES`.
        strategy: of the scorer, or `random`.
        output: folder of the run.
        seed: of problems and rollouts.
        changes: settings that differ.

    Raises:
        SettingsError: a change is not valid.
    """
    settings: dict[str, Any] = {
        "run_id": f"demo-{regime}-{strategy}",
        "output": output,
        "seed": seed,
        "strategy": strategy,
        "pool": f"arithmetic:{regime}/pool",
        "validation": f"arithmetic:{regime}/validation",
        "heldout": f"arithmetic:{regime}/heldout",
        "device": "cpu",
        "pool_size": 128,
        "select_fraction": 1 / 8,
        "validation_problems": 48,
        "validation_rollouts": 16,
        "rounds": 20,
        "updates_per_round": 2,
        "problems_per_backward": 32,
    }
    return TrainConfig(**{**settings, **changes})


def run_demo(settings: DemoSettings, console: Console) -> DemoReport:
    """Run everything, print what came of it, and write the picture.

    Args:
        settings: what to run.
        console: for progress; results go to stdout.

    Raises:
        GradAlignError: the scorer does not start, or a run fails.
    """
    began = time.monotonic()
    mark = secrets.token_hex(3)  # a scorer that saw an earlier demo would take its runs for the same ones
    configs = {
        (regime, strategy): demo_config(
            regime,
            strategy,
            settings.output / f"{regime}-{strategy}",
            seed=settings.seed,
            **{"run_id": f"demo-{regime}-{strategy}-{mark}", **settings.changes},
        )
        for strategy in STRATEGIES
        for regime in settings.regimes
    }
    for config in configs.values():
        shutil.rmtree(config.output, ignore_errors=True)
    with nullcontext(settings.scorer_url) if settings.scorer_url else local_scorer() as url:
        configs = {key: replace(config, scorer_url=url) for key, config in configs.items()}
        model_source(next(iter(configs.values())), progress=partial(show_progress, console=console))
        run_parallel({" ".join(key): config for key, config in configs.items()}, settings.workers, console)
        report = read_report(configs, url)
    picture = settings.output / "demo.png"
    plot_curves({f"{regime}: {REGIMES[regime]}": report.curves(regime) for regime in settings.regimes}, picture)
    out = Console()
    report.show(out)
    out.print(f"picture {picture}; {time.monotonic() - began:.0f} s in all", highlight=False, soft_wrap=True)
    return report
