"""What the processes of a grid do. Each plays many cells, since the import of torch costs as much as a short one."""

from __future__ import annotations

import ctypes
import logging
import shutil
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import torch

from gradalign import Client
from gradalign.errors import GradAlignError, NotFound
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.fallbacks import NO_SIGNAL, UNMEASURED, Fallbacks
from gradalign_trainer.grpo.models import load_tokenizer
from gradalign_trainer.records import RoundReport
from gradalign_trainer.reporting.console import hush_weights
from gradalign_trainer.runs.data import load_run_data
from gradalign_trainer.runs.loop import train
from gradalign_trainer.runs.parent_death import end_with_parent
from gradalign_trainer.world import World

__all__ = ["WAITING", "RoundCounts", "is_result", "play", "prepare_base", "set_up"]

SILENT_SHARE = 4  # one round in so many may have no validation signal

RoundCounts: TypeAlias = "ctypes.Array[ctypes.c_int]"
"""Rounds done of each run, by its number, in memory that all processes of the grid share: a process that is killed leaves
nothing half-written there and no lock."""

WAITING = -1
"""The count of a run that has not begun."""


class _Counter:
    """Counts the rounds of a run; an observer of the loop."""

    counts: ClassVar[RoundCounts | None] = None

    def __init__(self, number: int) -> None:
        self._number = number

    def stage(self, name: str, total: int) -> None:
        """Nothing; rounds are what is counted."""

    def advance(self, amount: int = 1) -> None:
        """Nothing; rounds are what is counted."""

    def report(self, report: RoundReport) -> None:
        """A round is over, or the evaluation before the first."""
        if self.counts is not None:
            self.counts[self._number] = report.round_number


def set_up(counts: RoundCounts) -> None:
    """Once a process: one thread, since there are as many processes as cores, and warnings only; it ends with its parent.

    Args:
        counts: where `play` counts.
    """
    _Counter.counts = counts
    end_with_parent()
    hush_weights()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")


def prepare_base(config: TrainConfig, world: World, seed: int) -> str:
    """The folder of a base model, made first where it is not in the cache of models.

    Raises:
        RuntimeError: it cannot be had; see `play`.
    """
    try:
        return str(world.base(config.model_cache.expanduser(), seed))
    except GradAlignError as error:
        raise RuntimeError(str(error)) from error


def play(config: TrainConfig, number: int | None = None) -> Sequence[RoundReport]:
    """Train once, in an output folder that is removed before and after; the reports of all rounds.

    A round without products that hold their self-check stays in the curve: it is a price of that way to align. So do a few
    rounds without a validation signal, as a model has them that is seldom right at first.

    Args:
        config: of the run.
        number: of the run, in the counts that `set_up` got; None counts nothing.

    Raises:
        RuntimeError: the run could not be played, or chose at random for want of a scorer or a signal. Not a
            GradAlignError, whose arguments need not survive the way back from a process.
    """
    shutil.rmtree(config.output, ignore_errors=True)
    try:
        _forget(config)
        data = load_run_data(config, load_tokenizer(config.model))
        result = train(config, data, config.model, observer=None if number is None else _Counter(number))
        _forget(config)
    except GradAlignError as error:
        raise RuntimeError(str(error)) from error
    finally:
        shutil.rmtree(config.output, ignore_errors=True)
    if not is_result(result.reasons, len(result.reports)):
        raise RuntimeError(
            f"with the scorer at {config.scorer_url} {result.reasons.told()}; the warnings above say more."
        )
    return result.reports


def is_result(reasons: Fallbacks, rounds: int) -> bool:
    """Whether a run of so many rounds, with these rounds at random among them, shows its method."""
    borne = reasons[UNMEASURED] + min(reasons[NO_SIGNAL], rounds // SILENT_SHARE)
    return reasons.total() <= borne


def _forget(config: TrainConfig) -> None:
    """Let the scorer forget the run: an earlier try that was killed, and what is over."""
    if not config.needs_scorer or config.scorer_url is None:
        return
    with Client(config.scorer_url, run_id=config.run_id, api_key=config.scorer_api_key) as client:
        try:
            client.delete_run()
        except NotFound:
            return
