"""The settings of a training run: one frozen dataclass, which `configfile` reads from TOML and `--set key=value`.

A file spells the settings of the model, the data, the scorer and the tracking in sections and all others at its top:

    run_id = "gsm8k-cosine"
    output = "runs/gsm8k-cosine"
    rounds = 40

    [model]
    path = "Qwen/Qwen2.5-0.5B-Instruct"

    [data]
    pool = { kind = "parquet", path = "data/train.parquet" }
    validation = { kind = "parquet", path = "data/validation.parquet" }
    heldout = "data/test.parquet"
    reward = "math_verify"

    [scorer]
    url = "http://127.0.0.1:8000"
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradalign.wire.checks import MAX_FEATURES
from gradalign.wire.matrix import SENT_DTYPES
from gradalign.wire.messages import AGGREGATIONS, DISCOUNT, MAX_POOL, MAX_PROBLEMS, STRATEGIES
from gradalign.wire.projection import MAX_DIM
from gradalign_trainer.datasets.sources.source import DataSpec, parse_sources
from gradalign_trainer.reporting.tracking import TRACKERS
from gradalign_trainer.rewards.registry import unknown_reward
from gradalign_trainer.settings import SettingsError, check_settings, limits, run_id_fault

__all__ = ["DataSpec", "TrainConfig"]


def _bad_device(value: str) -> str | None:
    return None if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value) else "expected auto, cpu, mps, cuda or cuda:N"


def _bad_width(value: int) -> str | None:
    return None if value % 16 == 0 else "expected a multiple of 16"


def _bad_url(value: str) -> str | None:
    return None if re.match(r"https?://.", value) else "expected a URL like http://127.0.0.1:8000"


def _bad_sources(value: Any) -> str | None:
    try:
        parse_sources(value)
    except SettingsError as error:
        return " ".join(error.faults).removesuffix(".")
    return None


WITHOUT_VALIDATION = ("norm", "learnalign", "accgreedy", "accuracy_band")  # strategies that look at candidates alone
_SEED = limits(low=0, high=2**53 - 1)
_COUNT = limits(low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One run, whole. Everything that decides its result is here; every value is checked when it is made.

    A name in brackets is how a file spells it; the others stand at the top of the file under their own name.

    Attributes:
        run_id: name of the run, also at the scorer: 1 to 128 letters, digits, '.', '_', '-'.
        output: folder of metrics and checkpoints.
        seed: of every random choice of the run but the projection.
        model: [model.path] folder or hub id of a causal LM; `arithmetic` for the built-in base model; `tiny-bytes`
            for a fresh tiny model with a byte vocabulary, taught `warm_start_steps` batches of `warm_start` first.
        model_cache: [model.cache] folder of models made on the spot.
        device: [model.device] `auto` (cuda where there is one, else cpu), or a torch device.
        dtype: [model.dtype] of the weights, `float32` or `bfloat16`.
        width: [model.width] hidden width of a fresh `tiny-bytes` model, a multiple of 16; 512 with 12 layers has 41 million
            parameters.
        layers: [model.layers] its blocks.
        lora_rank: [model.lora_rank] rank of LoRA adapters at all linear layers, which then are all that is trained (needs
            peft); None trains every parameter. The learning rate wants to be ten to a hundred times as large.
        warm_start: [model.warm_start] problems to teach a fresh model by supervised training.
        warm_start_steps: [model.warm_start_steps] batches of 64 of them.
        pool: [data.pool] problems to choose from; forms of a source: docs/data.md.
        validation: [data.validation] trusted problems; the first `validation_problems` are used.
        heldout: [data.heldout] problems to evaluate on.
        reward: [data.reward] name of the reward, or `package.module:function`.
        scorer_url: [scorer.url] where the scorer is; None only where none is needed: `random`, `oracle`, mode `dynamic`,
            mode `filter`.
        scorer_api_key: its key; not for files. `load_config` takes it from the environment.
        scorer_api_key_env: [scorer.api_key_env] environment variable that holds the key.
        scorer_timeout: [scorer.timeout] seconds to wait for a reply.
        scorer_retries: [scorer.retries] tries after the first before a round goes on without the scorer.
        sketch_dtype: [scorer.sketch_dtype] that sketches travel as: `float32`, or `int8` for a quarter of the bytes.
        strategy: of the scorer; `random` and `oracle` choose here and need none. The oracle takes at random of the problems
            whose `extra` has `good`, as the built-in worlds say it: a bound for what choosing can give. `posterior` takes no
            gradient and no rollouts to choose by: the scorer gets the pass rates of what was trained on, and picks by them.
        belief_discount: with strategy `posterior`, what earlier rollouts of a problem count for once newer ones come.
        belief_half_life: with it, policy versions at which the rollouts of a problem that was left alone count half; None:
            they never fade, as in MoPPS.
        mode: `choose` scores a pool, then trains on the selection with fresh rollouts; `weight` scores each training
            batch and weights its groups, so that no rollout is spent on scoring; `dynamic` draws at random until each
            batch is full of groups whose rewards differ (DAPO's dynamic sampling), with `strategy = "random"`; `filter`
            draws at random too, and leaves out rollouts whose gradient contradicts the others of the batch (DTV's
            leave-one-out).
        score_updates: in mode `choose`, also send the scorer the sketches of the problems trained on, taken out of the
            updates' own backwards, so that what it remembers of them is fresh.
        proposals: in mode `weight`, let the scorer say which problems to generate for, from features of the initial policy.
        proposal_pool: candidates that it is shown for each batch, drawn at random; one request holds their features.
        proposal_exploration: share of each batch that is drawn uniformly.
        proposal_cooldown: updates for which a problem that was proposed rests.
        feature_components: principal components of the prompts' mean token embeddings that make the features.
        pool_size: candidates per round (the paper's M); one request holds at most 4096.
        select_fraction: share of them that is trained on (the paper's q).
        group_size: rollouts per problem; at least 2, since one has no advantage over itself.
        validation_problems: how many trusted problems to use.
        validation_rollouts: rollouts per validation problem.
        refresh_every: rounds between validation gradients.
        validation_subset: trusted problems of each validation gradient, in rotation; None takes all of them each time.
        validation_decay: share of the validation gradient before that stays in the next: v becomes decay v + the new mean.
        train_on_validation: let each fresh gradient of validation problems join the update that follows; in mode `weight`.
        aggregation: of validation sketches: `pooled`, `mean` or `normalized`.
        alignment: how gradients are compared with the validation gradient. `capture` sends the scorer sketches of them, out
            of a batched backward. `exact` does, and keeps the full validation gradient and takes exact products with it, so
            that alignments have no error of projection: memory of one more gradient. `forward` sends products of every
            rollout, out of one forward without a backward: strategies that compare candidates with one another are not for
            it. Both not with aggregation `normalized`. `head` sends sketches of the gradient of the model's head alone
            (LESSER), whose backward ends there.
        exact_alignments: true is `alignment = "exact"`.
        norms: with alignment `forward`, what products are divided by: `none` ranks by the products, `head` by products over
            the norm of the head's gradient, out of the same forward.
        rollout_weights: in mode `weight` with alignment `forward`, weigh every rollout of a group by itself.
        dim: buckets of a sketch.
        projection_seed: of the sketch; runs that share it and `dim` have comparable sketches.
        rounds: selection cycles.
        stop_at_rollouts: end behind the round in which so many completions were generated, for whatever purpose; None
            plays all rounds.
        updates_per_round: optimizer steps in each.
        batch_problems: problems in each step.
        batch_validation: trusted problems that join the batch of each step, with rollouts of their own; in mode `choose`.
        problems_per_backward: problems in one forward and backward; bounds memory.
        learning_rate: of Adam.
        warmup_steps: optimizer steps over which it rises from zero.
        clip_norm: largest gradient norm.
        normalize_advantages: divide advantages by their group's standard deviation.
        max_new_tokens: longest completion, in tokens.
        stop: text of one token that ends a completion beside the end token: a line end, for models that write on.
        temperature: of sampling.
        prompts_per_batch: prompts generated at once; bounds memory. vLLM batches by itself.
        generation: who samples: `transformers`, or `vllm` where it is installed, on the policy's own device.
        vllm_memory: with it, the share of the device's memory that its engine takes for a copy of the weights and its KV
            cache; the training needs the rest.
        share_prompts: compute what is alike once: in sampling what all prompts of a batch begin with, in gradients the
            prompt of a group; groups without a signal are left out of updates. Several times as fast where completions
            are short. For models with full attention by `sdpa` or `eager`.
        evaluation: `exact` (probability of the answer by teacher forcing) or `sampled` (mean reward).
        evaluation_rollouts: rollouts per held-out problem when sampled.
        evaluate_every: rounds between evaluations.
        checkpoint_every: rounds between checkpoints; 0 for none but the last.
        checkpoints_kept: newest checkpoints to keep.
        trackers: [tracking.trackers] where metrics go besides `metrics.jsonl`: `tensorboard`, `wandb`.

    Raises:
        SettingsError: a value is of a wrong type or out of range; all faults are in it.
    """

    run_id: str = field(metadata=limits(check=run_id_fault))
    output: Path
    seed: int = field(default=0, metadata=_SEED)
    model: str = field(default="arithmetic", metadata=limits(key="model.path"))
    model_cache: Path = field(default=Path("~/.cache/gradalign"), metadata=limits(key="model.cache"))
    device: str = field(default="auto", metadata=limits(key="model.device", check=_bad_device))
    dtype: str = field(default="float32", metadata=limits(key="model.dtype", choices=("float32", "bfloat16")))
    width: int = field(default=64, metadata=limits(key="model.width", low=16, check=_bad_width))
    layers: int = field(default=2, metadata=limits(key="model.layers", low=1))
    lora_rank: int | None = field(default=None, metadata=limits(key="model.lora_rank", low=1))
    warm_start: DataSpec | None = field(default=None, metadata=limits(key="model.warm_start", check=_bad_sources))
    warm_start_steps: int = field(default=0, metadata=limits(key="model.warm_start_steps", low=0))
    pool: DataSpec = field(default="arithmetic:clean/pool", metadata=limits(key="data.pool", check=_bad_sources))
    validation: DataSpec = field(
        default="arithmetic:clean/validation", metadata=limits(key="data.validation", check=_bad_sources)
    )
    heldout: DataSpec = field(
        default="arithmetic:clean/heldout", metadata=limits(key="data.heldout", check=_bad_sources)
    )
    reward: str = field(default="arithmetic", metadata=limits(key="data.reward", check=unknown_reward))
    scorer_url: str | None = field(default=None, metadata=limits(key="scorer.url", check=_bad_url))
    scorer_api_key: str | None = field(default=None, repr=False, metadata=limits(key=""))
    scorer_api_key_env: str = field(default="GRADALIGN_API_KEY", metadata=limits(key="scorer.api_key_env"))
    scorer_timeout: float = field(default=30.0, metadata=limits(key="scorer.timeout", above=0))
    scorer_retries: int = field(default=5, metadata=limits(key="scorer.retries", low=0, high=100))
    sketch_dtype: str = field(default="float32", metadata=limits(key="scorer.sketch_dtype", choices=SENT_DTYPES))
    strategy: str = field(default="cosine", metadata=limits(choices=(*STRATEGIES, "oracle")))
    belief_discount: float = field(default=DISCOUNT, metadata=limits(low=0, high=1))
    belief_half_life: float | None = field(default=None, metadata=limits(low=1e-6))
    mode: str = field(default="choose", metadata=limits(choices=("choose", "weight", "dynamic", "filter")))
    score_updates: bool = False
    proposals: bool = False
    proposal_pool: int = field(default=128, metadata=limits(low=1, high=MAX_POOL))
    proposal_exploration: float = field(default=3 / 16, metadata=limits(low=0, high=1))
    proposal_cooldown: int = field(default=8, metadata=limits(low=0))
    feature_components: int = field(default=16, metadata=limits(low=1, high=MAX_FEATURES))
    pool_size: int = field(default=96, metadata=limits(low=1, high=MAX_PROBLEMS))
    select_fraction: float = field(default=1 / 3, metadata=limits(above=0, high=1))
    group_size: int = field(default=8, metadata=limits(low=2))
    validation_problems: int = field(default=32, metadata=limits(low=1, high=MAX_PROBLEMS))
    validation_rollouts: int = field(default=12, metadata=limits(low=2))
    refresh_every: int = field(default=1, metadata=_COUNT)
    validation_subset: int | None = field(default=None, metadata=_COUNT)
    validation_decay: float = field(default=0.0, metadata=limits(low=0, high=1))
    train_on_validation: bool = False
    aggregation: str = field(default="pooled", metadata=limits(choices=AGGREGATIONS))
    alignment: str = field(default="capture", metadata=limits(choices=("capture", "exact", "forward", "head")))
    exact_alignments: bool = False
    norms: str = field(default="none", metadata=limits(choices=("none", "head")))
    rollout_weights: bool = False
    dim: int = field(default=8192, metadata=limits(low=1, high=MAX_DIM))
    projection_seed: int = field(default=0, metadata=_SEED)
    rounds: int = field(default=15, metadata=_COUNT)
    stop_at_rollouts: int | None = field(default=None, metadata=_COUNT)
    updates_per_round: int = field(default=4, metadata=_COUNT)
    batch_problems: int = field(default=16, metadata=limits(low=1, high=MAX_PROBLEMS))
    batch_validation: int = field(default=0, metadata=limits(low=0, high=MAX_PROBLEMS))
    problems_per_backward: int = field(default=16, metadata=_COUNT)
    learning_rate: float = field(default=2e-4, metadata=limits(above=0))
    warmup_steps: int = field(default=10, metadata=limits(low=0))
    clip_norm: float = field(default=1.0, metadata=limits(above=0))
    normalize_advantages: bool = False
    max_new_tokens: int = field(default=6, metadata=_COUNT)
    stop: str | None = None
    temperature: float = field(default=1.0, metadata=limits(above=0))
    prompts_per_batch: int = field(default=256, metadata=_COUNT)
    generation: str = field(default="transformers", metadata=limits(choices=("transformers", "vllm")))
    vllm_memory: float = field(default=0.3, metadata=limits(above=0, high=1))
    share_prompts: bool = False
    evaluation: str = field(default="exact", metadata=limits(choices=("exact", "sampled")))
    evaluation_rollouts: int = field(default=4, metadata=_COUNT)
    evaluate_every: int = field(default=1, metadata=_COUNT)
    checkpoint_every: int = field(default=5, metadata=limits(low=0))
    checkpoints_kept: int = field(default=2, metadata=_COUNT)
    trackers: tuple[str, ...] = field(default=(), metadata=limits(key="tracking.trackers", choices=TRACKERS))

    def __post_init__(self) -> None:
        check_settings(self)
        if self.exact_alignments and self.alignment == "capture":
            object.__setattr__(self, "alignment", "exact")

    @property
    def needs_scorer(self) -> bool:
        """Whether anything is asked of a scorer."""
        return self.mode == "weight" or (self.mode == "choose" and self.strategy not in ("random", "oracle"))

    @property
    def by_pass_rates(self) -> bool:
        """Whether problems are chosen by their pass rates so far, without a gradient."""
        return self.mode == "choose" and self.strategy == "posterior"

    @property
    def needs_validation(self) -> bool:
        """Whether what is asked of the scorer depends on a validation gradient."""
        if self.by_pass_rates:
            return False
        looks = self.mode == "weight" or self.alignment == "forward" or self.strategy not in WITHOUT_VALIDATION
        return self.needs_scorer and looks
