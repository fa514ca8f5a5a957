"""Settings of the curriculum in a TRL run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gradalign.errors import InvalidValue
from gradalign.wire.checks import check_name
from gradalign.wire.matrix import SENT_DTYPES
from gradalign.wire.messages import AGGREGATIONS, SKETCH_STRATEGIES
from gradalign_trainer.curriculum.curriculum import ScorerAddress
from gradalign_trainer.settings import check_settings, limits

__all__ = ["USES", "GradAlignConfig"]

USES = ("weight", "select", "both")


def _named(run_id: str) -> str | None:
    try:
        check_name("run_id", run_id)
    except InvalidValue:
        return "expected 1 to 128 letters, digits, '.', '_' or '-'"
    return None


def _rows(dataset: Any) -> str | None:
    if not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__"):
        return "expected a datasets.Dataset with a `prompt` column and the columns that the reward functions read"
    if "prompt" not in dataset.column_names or not len(dataset):
        return f"expected at least one row and a `prompt` column; it has {len(dataset)} rows, columns {dataset.column_names}"
    return None


@dataclass(frozen=True, kw_only=True)
class GradAlignConfig:
    """How a GRPO run uses the scorer. Only the first three have to be given.

    Attributes:
        scorer_url: of the scorer, `http://host:port`.
        run_id: name of the training job at the scorer; a job that resumes keeps it, another one takes another.
        validation_dataset: small and trusted; rows as the training dataset's, scored by the same reward functions.
        use: `weight` multiplies each group's advantages by its weight in [0, 1], no rollout is wasted; `select` lets the
            sampler propose problems by their stored priorities; `both`.
        strategy: of the scorer; what `select` sorts by. Weights come from alignments whatever it is.
        refresh_every: optimizer steps between two validation gradients.
        validation_rollouts: per validation problem and refresh; `num_generations` where None.
        aggregation: of the validation gradients: `pooled`, `mean` or `normalized`.
        dim: length of a sketch.
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
    run_id: str = field(metadata=limits(check=_named))
    validation_dataset: Any = field(metadata=limits(check=_rows))
    use: str = field(default="weight", metadata=limits(choices=USES))
    strategy: str = field(default="cosine", metadata=limits(choices=SKETCH_STRATEGIES))
    refresh_every: int = field(default=5, metadata=limits(low=1))
    validation_rollouts: int | None = field(default=None, metadata=limits(low=2))
    aggregation: str = field(default="pooled", metadata=limits(choices=AGGREGATIONS))
    dim: int = field(default=8192, metadata=limits(low=1, high=1 << 20))
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

    @property
    def weighs(self) -> bool:
        """Whether advantages are multiplied by weights."""
        return self.use != "select"

    @property
    def selects(self) -> bool:
        """Whether the sampler asks which problems to take."""
        return self.use != "weight"

    def address(self, epoch: int) -> ScorerAddress:
        """Where the scorer is, for a writer of this fencing token."""
        return ScorerAddress(self.scorer_url, self.api_key, self.timeout, self.retries, epoch, self.sketch_dtype)
