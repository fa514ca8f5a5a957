"""The settings of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["DataSpec", "TrainConfig"]

DataSpec: TypeAlias = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run, whole. Everything that decides its result is here.

    Attributes:
        run_id: name of the run, also at the scorer.
        output: folder of metrics and checkpoints.
        seed: of every random choice.
        model: path or hub id of a causal LM; `arithmetic` for the built-in base model; `tiny-bytes` for a fresh tiny
            model with a byte vocabulary, taught `warm_start_steps` batches of `warm_start` first.
        model_cache: folder of models made on the spot.
        device: `auto` (cuda where there is one, else cpu), or a torch device.
        dtype: of the weights, `float32` or `bfloat16`.
        warm_start: problems to teach a fresh model by supervised training.
        warm_start_steps: batches of 64 of them.
        pool: problems to choose from.
        validation: trusted problems; the first `validation_problems` are used.
        heldout: problems to evaluate on.
        reward: name of the reward.
        scorer_url: where the scorer is; None only with `strategy = "random"`.
        scorer_api_key: its key; `GRADALIGN_API_KEY` from the environment where None.
        scorer_timeout: seconds to wait for a reply.
        scorer_retries: tries after the first before a round goes on without the scorer.
        strategy: of the scorer; `random` chooses here and needs no scorer.
        mode: `choose` scores a pool, then trains on the selection with fresh rollouts; `weight` scores each training
            batch and weights its groups, so that no rollout is spent on scoring.
        pool_size: candidates per round (the paper's M).
        select_fraction: share of them that is trained on (the paper's q).
        group_size: rollouts per problem.
        validation_problems: how many trusted problems to use.
        validation_rollouts: rollouts per validation problem.
        refresh_every: rounds between validation gradients.
        aggregation: of validation sketches: `pooled`, `mean` or `normalized`.
        dim: buckets of a sketch.
        rounds: selection cycles.
        updates_per_round: optimizer steps in each.
        batch_problems: problems in each step.
        problems_per_backward: problems in one forward and backward; bounds memory.
        learning_rate: of Adam.
        warmup_steps: steps over which it rises from zero.
        clip_norm: largest gradient norm.
        normalize_advantages: divide advantages by their group's standard deviation.
        max_new_tokens: longest completion.
        temperature: of sampling.
        prompts_per_batch: prompts generated at once; bounds memory.
        evaluation: `exact` (probability of the answer by teacher forcing) or `sampled` (mean reward).
        evaluation_rollouts: rollouts per held-out problem when sampled.
        evaluate_every: rounds between evaluations.
        checkpoint_every: rounds between checkpoints; 0 for none but the last.
        checkpoints_kept: newest checkpoints to keep.
    """

    run_id: str
    output: Path
    seed: int = 0
    model: str = "arithmetic"
    model_cache: Path = Path("~/.cache/gradalign")
    device: str = "auto"
    dtype: str = "float32"
    warm_start: DataSpec | None = None
    warm_start_steps: int = 0
    pool: DataSpec = "arithmetic:clean/pool"
    validation: DataSpec = "arithmetic:clean/validation"
    heldout: DataSpec = "arithmetic:clean/heldout"
    reward: str = "arithmetic"
    scorer_url: str | None = None
    scorer_api_key: str | None = None
    scorer_timeout: float = 30.0
    scorer_retries: int = 5
    strategy: str = "cosine"
    mode: str = "choose"
    pool_size: int = 96
    select_fraction: float = 1 / 3
    group_size: int = 8
    validation_problems: int = 32
    validation_rollouts: int = 12
    refresh_every: int = 1
    aggregation: str = "pooled"
    dim: int = 8192
    rounds: int = 15
    updates_per_round: int = 4
    batch_problems: int = 16
    problems_per_backward: int = 16
    learning_rate: float = 2e-4
    warmup_steps: int = 10
    clip_norm: float = 1.0
    normalize_advantages: bool = False
    max_new_tokens: int = 6
    temperature: float = 1.0
    prompts_per_batch: int = 256
    evaluation: str = "exact"
    evaluation_rollouts: int = 4
    evaluate_every: int = 1
    checkpoint_every: int = 0
    checkpoints_kept: int = 2
