"""Which row is which problem: ids that do not collide, in `extra_info.problem_id` where driver and workers see them.

verl's own `index` is `extra_info.index`, or 0 where that is missing, and those of two data sources collide. A row keeps
the `extra_info.problem_id` that it has; any other gets `stable_id(prompt, ground truth, data source)`. Rows that agree
in all three are one problem, of which one row is drawn at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradalign.errors import GradAlignError
from gradalign_trainer.adapters.problemids import stable_id

__all__ = ["TRUSTED", "ProblemRows", "batch_problem_ids", "mark_problems"]

TRUSTED = "trusted"


@dataclass(frozen=True, slots=True)
class ProblemRows:
    """Rows of a dataset by problem.

    Attributes:
        pool: problem id -> rows, of the candidates.
        trusted: problem id -> rows, of those with `extra_info.gradalign = "trusted"`.
    """

    pool: Mapping[str, Sequence[int]]
    trusted: Mapping[str, Sequence[int]]


def problem_id(row: Mapping[str, Any], prompt_key: str = "prompt") -> str:
    """The id of a row as verl's dataset holds it."""
    info = row.get("extra_info") or {}
    if info.get("problem_id") not in (None, ""):
        return str(info["problem_id"])
    truth = (row.get("reward_model") or {}).get("ground_truth")
    return stable_id(row[prompt_key], truth, "" if row.get("data_source") is None else str(row["data_source"]))


def mark_problems(
    dataset: Any, prompt_key: str = "prompt", trusted_sources: Collection[str] = frozenset()
) -> ProblemRows:
    """Write ids into the rows of verl's `RLHFDataset`, and find which rows are whose.

    Args:
        dataset: its `dataframe` is a `datasets.Dataset`, or a list of rows.
        prompt_key: column of the prompt.
        trusted_sources: rows with one of these as `data_source` are marked as trusted.

    Raises:
        GradAlignError: a problem is both trusted and a candidate, or nothing is left to train on.
    """
    rows = dataset.dataframe

    def marked(row: Mapping[str, Any]) -> dict[str, Any]:
        return {"extra_info": _marked(row, prompt_key, trusted_sources)}

    if hasattr(rows, "map"):
        dataset.dataframe = rows.map(marked, load_from_cache_file=False)
    else:
        dataset.dataframe = [{**row, **marked(row)} for row in rows]
    parts: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
    for place, row in enumerate(dataset.dataframe):
        info = row["extra_info"]
        parts[info.get("gradalign") == TRUSTED].setdefault(info["problem_id"], []).append(place)
    pool, trusted = parts
    both = sorted(pool.keys() & trusted.keys())
    if both:
        raise GradAlignError(
            f"{len(both)} problems are trusted in one row and candidates in another ({both[0]}...): what is validated "
            "on must not be chosen. Remove them from one of the two."
        )
    if not pool:
        raise GradAlignError(f"all {len(trusted)} problems are trusted; expected candidates beside them to train on.")
    return ProblemRows(pool, trusted)


def _marked(row: Mapping[str, Any], prompt_key: str, trusted_sources: Collection[str]) -> dict[str, Any]:
    info = {**(row.get("extra_info") or {}), "problem_id": problem_id(row, prompt_key)}
    if trusted_sources:  # in every row, since a table's rows have the same keys
        trusted = str(row.get("data_source")) in trusted_sources or info.get("gradalign") == TRUSTED
        info["gradalign"] = TRUSTED if trusted else ""
    return info


def batch_problem_ids(batch: Any) -> tuple[list[str], list[bool]]:
    """Problem of every row of a `DataProto`, and whether it is trusted.

    Raises:
        GradAlignError: rows carry no id.
    """
    infos = batch.non_tensor_batch.get("extra_info")
    if infos is None or any((info or {}).get("problem_id") in (None, "") for info in infos):
        raise GradAlignError(
            "rows of the batch carry no extra_info.problem_id; GradAlignSampler writes it into verl's RLHFDataset. Is "
            "another sampler in data.sampler, or does a custom dataset drop extra_info? Then give rows an id there."
        )
    return [str(info["problem_id"]) for info in infos], [info.get("gradalign") == TRUSTED for info in infos]
