"""A whole training run from its settings: model, data, loop, metrics."""

from __future__ import annotations

from collections.abc import Sequence

from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.grpo.models import load_tokenizer
from gradalign_trainer.policy.policy import check_generation
from gradalign_trainer.records import Observer, RunResult
from gradalign_trainer.reporting.progress import TellsProgress, Together, no_progress
from gradalign_trainer.reporting.tracking import MetricsLog
from gradalign_trainer.runs.checkpoint import latest_checkpoint, load_state
from gradalign_trainer.runs.data import load_run_data
from gradalign_trainer.runs.loop import train
from gradalign_trainer.runs.modelsource import model_source

__all__ = ["run_training"]


def run_training(
    config: TrainConfig,
    *,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    progress: TellsProgress = no_progress,
) -> RunResult:
    """Train as the settings say; metrics go to `metrics.jsonl` in the output folder, and to the trackers.

    Args:
        config: of the run.
        resume: go on from the newest checkpoint in the output folder.
        observers: told of the run as it goes.
        progress: told how far the making of a model and the reading of data are.

    Raises:
        GradAlignError: settings, data, checkpoint or scorer do not fit; nothing was trained then, or up to the last
            checkpoint.
    """
    check_generation(config)
    source = model_source(config, progress=progress)
    data = load_run_data(config, load_tokenizer(source), progress=progress)
    with MetricsLog(
        config.output, run_id=config.run_id, resume_round=_resumed_round(config, resume), trackers=config.trackers
    ) as metrics:
        return train(config, data, source, resume=resume, observer=Together(metrics, *observers))


def _resumed_round(config: TrainConfig, resume: bool) -> int | None:
    newest = latest_checkpoint(config.output / "checkpoints")
    if not resume:
        return None
    return load_state(newest).round_number if newest is not None else 0
