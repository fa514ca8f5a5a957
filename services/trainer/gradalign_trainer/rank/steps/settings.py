"""What a ranking is asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradalign.errors import GradAlignError
from gradalign_trainer.datasets.sources.remote import RemoteFile, Source
from gradalign_trainer.rank.steps.gradient import Rule

__all__ = ["NEEDS_NO_VALIDATION", "RankSettings", "digest"]

NEEDS_NO_VALIDATION = ("norm", "learnalign", "accgreedy", "accuracy_band", "random", "posterior")
WEIGHTS = ("*.safetensors", "*.bin", "config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """Settings of `gradalign rank`.

    Attributes:
        model: folder or hub id of the policy that gave the responses.
        train: scored responses of the candidates.
        validation: scored responses of the trusted problems; None for a strategy that needs none.
        out: file of the similarities, JSONL; `accuracy_by_problem.jsonl` is written beside it.
        strategy: the scorer's.
        select: how many problems to select; None for none.
        problems: the candidates as verl's JSONL or Parquet, to select from.
        duplicates: `refuse` raises where two problems have one index; `drop` keeps the first.
        selected: folder of the selected `train.jsonl` and `train.parquet`; None for `selected` beside `out`.
        url: of a scorer; None for one of our own.
        sketch_dtype: that sketches travel to it as: `float32`, or `int8` for a quarter of the bytes.
        exact: take full gradients; the sketch is measured against them.
        rule: how token terms are added up.
        normalize: divide advantages by the group's standard deviation.
        dim: buckets of a sketch.
        seed: of the projection.
        device: `auto`, `cpu`, `cuda`.
        dtype: of the model: `float32`, `bfloat16` or `float16`.
        max_length: tokens of prompt and response; what is longer is cut.
        threads: of a process on a CPU, on which bits depend; None for those that torch takes.
        resume: go on from an interrupted ranking.
    """

    model: str
    train: Source
    validation: Source | None
    out: Path
    strategy: str = "cosine"
    select: int | None = None
    problems: Source | None = None
    duplicates: str = "refuse"
    selected: Path | None = None
    url: str | None = None
    sketch_dtype: str = "float32"
    exact: bool = False
    rule: Rule = field(default_factory=lambda: Rule("group"))
    normalize: bool = False
    dim: int = 8192
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    max_length: int = 4096
    threads: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.validation is None and self.strategy not in NEEDS_NO_VALIDATION:
            raise GradAlignError(
                f"--strategy {self.strategy} ranks by alignment with validation problems; give --validation, or one of "
                f"{', '.join(NEEDS_NO_VALIDATION)}."
            )
        if self.out.is_dir():
            raise GradAlignError(
                f"--out {self.out} is a folder; expected a file, for example {self.out / 'similarity.jsonl'}."
            )
        if (self.select is None) != (self.problems is None):
            given, other = ("--select", "--problems") if self.problems is None else ("--problems", "--select")
            raise GradAlignError(
                f"{given} was given without {other}; a selection needs both: how many, and of what file."
            )

    @property
    def progress(self) -> Path:
        """Folder of what was measured so far."""
        return self.out.with_name(f"{self.out.name}.progress")

    @property
    def accuracy(self) -> Path:
        """File of the pass rates."""
        return self.out.with_name("accuracy_by_problem.jsonl")

    @property
    def selected_folder(self) -> Path:
        """Folder of the selected problems."""
        return self.selected or self.out.with_name("selected")

    @property
    def asked_strategy(self) -> str:
        """What the scorer is asked for: exact LearnAlign is the cosine with the candidates' own pooled gradient."""
        return "cosine" if self.strategy == "learnalign" and self.against is not None else self.strategy

    @property
    def against(self) -> Source | None:
        """Responses whose pooled gradient is taken exactly; of LearnAlign the candidates' own."""
        if not self.exact:
            return None
        return self.train if self.strategy == "learnalign" else self.validation

    def measured(self) -> dict[str, Any]:
        """What the measurements depend on, in plain values; files by content, weights by size and time."""
        return {
            "model": _model_state(self.model),
            "train": digest(self.train),
            "validation": None if self.validation is None else digest(self.validation),
            "against": None if self.against is None else ("train" if self.against == self.train else "validation"),
            "rule": [
                self.rule.name,
                *((self.rule.mini_batch, self.rule.ranks) if self.rule.name == "reference" else ()),
            ],
            "normalize": self.normalize,
            "dim": self.dim,
            "seed": self.seed,
            "dtype": self.dtype,
            "max_length": self.max_length,
        }


def digest(path: Source) -> str:
    """What changes with the content of a file: its SHA-256, or what its place tells where it is elsewhere."""
    if not path.is_file():
        return "missing"
    if isinstance(path, RemoteFile):
        return path.identity()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model_state(model: str) -> list[Any]:
    files = sorted(file for pattern in WEIGHTS for file in Path(model).glob(pattern)) if Path(model).is_dir() else []
    return [model, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]
