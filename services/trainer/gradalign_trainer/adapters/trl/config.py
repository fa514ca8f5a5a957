"""Settings of the curriculum in a TRL run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gradalign.errors import InvalidValue
from gradalign.wire.matrix import SENT_DTYPES
from gradalign.wire.messages import AGGREGATIONS, GRADIENT_STRATEGIES, SKETCH_STRATEGIES, STRATEGIES
from gradalign_trainer.adapters.uses import Uses
from gradalign_trainer.curriculum.curriculum import ScorerAddress
from gradalign_trainer.settings import check_settings, limits, run_id_fault

__all__ = ["ALIGNMENTS", "USES", "GradAlignConfig"]

ALIGNMENTS = ("auto", "forward", "capture")
USES = ("weight", "select", "both")


def _rows(dataset: Any) -> str | None:
    if not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__"):
        return "expected a datasets.Dataset with a `prompt` column and the columns that the reward functions read"
    if "prompt" not in dataset.column_names or not len(dataset):
        return f"expected at least one row and a `prompt` column; it has {len(dataset)} rows, columns {dataset.column_names}"
    return None


@dataclass(frozen=True, kw_only=True)
class GradAlignConfig(Uses):
    """How a GRPO run uses the scorer. Only the first three have to be given.

    Attributes:
        scorer_url: of the scorer, `http://host:port`.
        run_id: name of the training job at the scorer; a job that resumes keeps it, another one takes another.
        validation_dataset: small and trusted; rows as the training dataset's, scored by the same reward functions.
        use: `weight` multiplies each group's advantages by its weight in [0, 1], no rollout is wasted; `select` lets the
            sampler propose problems by their stored priorities; `both`.
        alignment: `capture` takes a sketch of every group out of a forward and backward with hooks. `forward` takes the
            product of every rollout with the validation gradient out of forward passes of TRL's own log-prob function: it
            costs less, and runs whatever TRL trains, but ranks by products and not by cosines, without the strategies that
            compare candidates (`learnalign`, `diverse`) or need norms (`norm`) and the aggregation `normalized`. `auto`:
            what the scorer holds of this run; of a new run `capture`, but `forward` where `shrunken` or rollout weights are
            asked for, or the model is sharded by FSDP2 or takes images.
        strategy: of the scorer; what `select` sorts by. Weights come from alignments whatever it is.
        rollout_weights: multiply each rollout's advantage by a weight of its own, instead of its group's; needs products.
        refresh_every: optimizer steps between two validation gradients.
        validation_rollouts: per validation problem and refresh; `num_generations` where None.
        aggregation: of the validation gradients: `pooled`, `mean` or `normalized`.
        dim: length of a sketch.
        offload: keep the validation gradient, and the copy of the trainable weights while products are taken, on the CPU.
        checkpoint_gradient: keep the validation gradient of products with each checkpoint: as many bytes as the trainable
            weights. Without it the batch behind a checkpoint takes a new one.
        seed: of the projection and of exploration.
        id_column: column with the problems' ids. Where the dataset has none, ids are made of the rows' content.
        exploration: `select`'s share of problems never scored or longest unscored.
        half_life: optimizer steps after which a stored score has shrunk half-way to the mean, for `select`.
        cooldown: optimizer steps for which a selected problem is not selected again.
        api_key: of the scorer; `GRADALIGN_API_KEY` of the environment where None.
        timeout: seconds to wait for a reply.
        retries: tries after the first.
        sketch_dtype: that sketches travel as: `float32`, or `int8` for a quarter of the bytes.
        fail_open: train on with weights of 1 and TRL's own order while the scorer is away; else raise.

    Raises:
        SettingsError: a value cannot be used; all faults are in it.
    """

    scorer_url: str
    run_id: str = field(metadata=limits(check=run_id_fault))
    validation_dataset: Any = field(metadata=limits(check=_rows))
    use: str = field(default="weight", metadata=limits(choices=USES))
    alignment: str = field(default="auto", metadata=limits(choices=ALIGNMENTS))
    strategy: str = field(default="cosine", metadata=limits(choices=STRATEGIES))
    rollout_weights: bool = False
    refresh_every: int = field(default=5, metadata=limits(low=1))
    validation_rollouts: int | None = field(default=None, metadata=limits(low=2))
    aggregation: str = field(default="pooled", metadata=limits(choices=AGGREGATIONS))
    dim: int = field(default=8192, metadata=limits(low=1, high=1 << 20))
    offload: bool = False
    checkpoint_gradient: bool = True
    seed: int = field(default=0, metadata=limits(low=0))
    id_column: str = "problem_id"
    exploration: float = field(default=0.5, metadata=limits(low=0, high=1))
    half_life: float = field(default=16.0, metadata=limits(above=0))
    cooldown: int = field(default=1, metadata=limits(low=0))
    api_key: str | None = field(default=None, repr=False)
    timeout: float = field(default=30.0, metadata=limits(above=0))
    retries: int = field(default=3, metadata=limits(low=0))
    sketch_dtype: str = field(default="float32", metadata=limits(choices=SENT_DTYPES))
    fail_open: bool = True

    def __post_init__(self) -> None:
        check_settings(self, prefix="GradAlignConfig.")
        if self.validation_dataset is None:
            fault = _rows(None)
            raise InvalidValue(f"GradAlignConfig.validation_dataset is None; {fault}.", param="validation_dataset")
        self._check_alignment()

    def _check_alignment(self) -> None:
        sketches, products = self.needs_sketches, self.needs_products
        if products and (sketches or self.alignment == "capture"):
            reason = f"and {sketches} needs sketches" if sketches else "which capture does not take"
            raise InvalidValue(
                f"GradAlignConfig.{products} needs products of single rollouts, {reason}; take one of them, or "
                'alignment="forward" instead of "capture".',
                param="alignment",
            )
        if sketches and self.alignment == "forward":
            raise InvalidValue(
                f"GradAlignConfig.{sketches} needs the gradients of the candidates themselves, and forward passes give "
                'their products with the validation gradient alone. Take alignment="capture", or a strategy that ranks by '
                "products (cosine, say, or shrunken) and the aggregation pooled or mean.",
                param="alignment",
            )

    @property
    def needs_sketches(self) -> str | None:
        """The setting that goes with `capture` only; None where there is none."""
        if self.strategy in GRADIENT_STRATEGIES:
            return f"strategy = {self.strategy!r}"
        return "aggregation = 'normalized'" if self.aggregation == "normalized" else None

    @property
    def needs_products(self) -> str | None:
        """The setting that goes with `forward` only; None where there is none."""
        if self.strategy not in SKETCH_STRATEGIES:
            return f"strategy = {self.strategy!r}"
        return "rollout_weights = True" if self.rollout_weights else None

    def address(self, epoch: int) -> ScorerAddress:
        """Where the scorer is, for a writer of this fencing token."""
        return ScorerAddress(self.scorer_url, self.api_key, self.timeout, self.retries, epoch, self.sketch_dtype)
