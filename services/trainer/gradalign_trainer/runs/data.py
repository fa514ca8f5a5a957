"""The data of a run: pool, validation and held-out problems and the reward, as its settings name them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.datasets.load import load_problems
from gradalign_trainer.datasets.records.chat import render_prompts
from gradalign_trainer.datasets.records.schema import DataError
from gradalign_trainer.problems import Problem
from gradalign_trainer.records import RunData
from gradalign_trainer.reporting.progress import TellsProgress, no_progress
from gradalign_trainer.rewards.registry import make_reward

__all__ = ["load_run_data"]

logger = logging.getLogger(__name__)


def load_run_data(config: TrainConfig, tokenizer: Any = None, *, progress: TellsProgress = no_progress) -> RunData:
    """Read everything that a run trains on and is judged by.

    Problems that stand both in the pool and among the held-out ones are warned of: what is measured on them is memory.

    Args:
        config: of the run.
        tokenizer: of the model; renders chats. None leaves them as joined text.
        progress: told how far the reading is.

    Raises:
        SettingsError: a source or the reward is not valid.
        DataError: problems cannot be read, or the reward cannot judge them.
    """
    parts = {
        part: load_problems(spec, seed=config.seed, part=part, progress=progress).problems
        for part, spec in (("pool", config.pool), ("validation", config.validation), ("heldout", config.heldout))
    }
    for part, problems in parts.items():
        _check_reward(config.reward, part, problems)
    _warn_of_overlap(parts["pool"], parts["heldout"])
    if tokenizer is not None:
        parts = {part: render_prompts(problems, tokenizer) for part, problems in parts.items()}
    return RunData(**parts, reward=make_reward(config.reward))


def _check_reward(reward: str, part: str, problems: Sequence[Problem]) -> None:
    if reward != "reasoning_gym":
        return
    stranger = next((problem for problem in problems if "entry" not in problem.extra), None)
    if stranger is not None:
        raise DataError(
            f"data.{part} holds problem {stranger.problem_id!r} of source {stranger.source!r}, and data.reward is "
            "'reasoning_gym', which judges its own tasks only. Expected sources of kind 'reasoning_gym', or another reward."
        )


def _warn_of_overlap(pool: Sequence[Problem], heldout: Sequence[Problem]) -> None:
    trained = {problem.prompt for problem in pool}
    shared = [problem.problem_id for problem in heldout if problem.prompt in trained]
    if shared:
        logger.warning(
            "%d of %d held-out problems are in the pool too (%s...); the run will look better than it is. Remove them.",
            len(shared),
            len(heldout),
            ", ".join(shared[:3]),
        )
