"""Where a run's model comes from: a folder or hub id as it is, or a model made on the spot and kept for the next run."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import torch

from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.datasets import load_problems
from gradalign_trainer.grpo.models import pick_device
from gradalign_trainer.problems import Problem
from gradalign_trainer.reporting.progress import TellsProgress, no_progress
from gradalign_trainer.worlds.basemodel import BaseTraining, base_model
from gradalign_trainer.worlds.supervised import padded_batch, save_once, train_supervised
from gradalign_trainer.worlds.tinymodel import byte_tokenizer, tiny_model

__all__ = ["MADE_MODELS", "model_source"]

MADE_MODELS = ("arithmetic", "tiny-bytes")
WARM_BATCH = 64
WARM_RATE = 2e-3
RECIPE = 1  # raise it when a byte model would come out otherwise, so that cached ones are not mistaken for it


def model_source(config: TrainConfig, *, progress: TellsProgress = no_progress) -> str | Path:
    """The folder or hub id to load the run's model from; `arithmetic` and `tiny-bytes` are made first where missing.

    Args:
        config: of the run.
        progress: told how far the making is.

    Raises:
        DataError: the warm-start problems cannot be read.
    """
    cache = config.model_cache.expanduser()
    if config.model == "arithmetic":
        settings = BaseTraining()
        with progress("training the arithmetic base model", settings.steps) as advance:
            return base_model(cache, settings, lambda done: advance(1))  # noqa: ARG005
    if config.model == "tiny-bytes":
        return _byte_model(config, cache, progress)
    return config.model


def _byte_model(config: TrainConfig, cache: Path, progress: TellsProgress) -> Path:
    problems: list[Problem] = []
    if config.warm_start is not None:
        problems = list(load_problems(config.warm_start, seed=config.seed, part="warm_start").problems)
    steps = config.warm_start_steps if problems else 0
    content = json.dumps([[problem.prompt, problem.answer] for problem in problems])
    recipe = json.dumps([RECIPE, config.seed, config.width, config.layers, steps, WARM_BATCH, WARM_RATE])
    folder = cache / f"bytes-{hashlib.sha256(f'{recipe}{content}'.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    tokenizer = byte_tokenizer()
    heads = max(4, config.width // 64)
    size = {"hidden": config.width, "layers": config.layers, "heads": heads, "mlp": 3 * config.width}
    model = tiny_model(tokenizer, seed=config.seed, **size)
    torch.nn.Module.to(model, pick_device(config.device))
    rows = [
        (tokenizer(problem.prompt)["input_ids"], [*tokenizer(problem.answer)["input_ids"], tokenizer.eos_token_id])
        for problem in problems
    ]
    rng = random.Random(f"warm/{config.seed}")
    with progress("warm-starting the byte model", steps) as advance:
        train_supervised(
            model,
            lambda: padded_batch(rng.choices(rows, k=WARM_BATCH), int(tokenizer.pad_token_id)),
            steps=steps,
            learning_rate=WARM_RATE,
            progress=lambda done: advance(1),  # noqa: ARG005
        )
    return save_once(folder, model, tokenizer)
