"""The scorer's view of what was measured: priorities and alignments of all groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradalign import Client
from gradalign.errors import GradAlignError
from gradalign.wire.projection import Projection
from gradalign.wire.replies import Ranking, RefreshReply

__all__ = ["Columns", "Scored", "rank_order", "score", "spearman"]

Floats = npt.NDArray[np.float64]
CHUNK = 2048  # rows of one request; the store commits so many in a few milliseconds
TOGETHER = ("learnalign", "diverse")


@dataclass(frozen=True, slots=True)
class Columns:
    """Groups as the scorer takes them; item i everywhere is group i of P.

    Attributes:
        ids: problem ids.
        sketches: float32 [P, dim].
        tokens: response tokens.
        rollouts: responses.
        pass_rates: mean rewards; None for validation groups.
        dots: exact products with the unit validation gradient, [P]; None where not taken.
        norms: exact norms, [P]; None where not taken.
    """

    ids: Sequence[str]
    sketches: npt.NDArray[np.float32]
    tokens: Sequence[int]
    rollouts: Sequence[int]
    pass_rates: Sequence[float] | None = None
    dots: Sequence[float] | None = None
    norms: Sequence[float] | None = None

    def part(self, start: int) -> dict[str, Any]:
        """The columns of a request of `CHUNK` groups."""
        rows = slice(start, start + CHUNK)
        named = ("tokens", "rollouts", "pass_rates", "dots", "norms")
        columns = {name: getattr(self, name) for name in named}
        return {name: list(column[rows]) for name, column in columns.items() if column is not None}


@dataclass(frozen=True, slots=True)
class Scored:
    """What came of it.

    Attributes:
        priorities: by problem id.
        alignments: by problem id; None for all where there is no validation gradient.
        refresh: the answer to the validation gradient; None where none was sent.
        reliability: expected correlation of sketched with exact alignments; None where the scorer gives none.
        advised_dim: the dim that would do, where `reliability` is low.
        rejected: reasons by problem id of rows that the scorer left out.
    """

    priorities: dict[str, float]
    alignments: dict[str, float | None]
    refresh: RefreshReply | None = None
    reliability: float | None = None
    advised_dim: int | None = None
    rejected: dict[str, str] = field(default_factory=dict)


def score(
    client: Client, projection: Projection, strategy: str, candidates: Columns, validation: Columns | None
) -> Scored:
    """Ask the scorer for the priorities of all candidates, in requests of bounded size.

    Raises:
        GradAlignError: the strategy ranks candidates against one another and there are too many for one request; or what
            the client raises.
    """
    if strategy in TOGETHER and len(candidates.ids) > CHUNK:
        raise GradAlignError(
            f"--strategy {strategy} compares candidates with one another, at most {CHUNK} at once; the file has "
            f"{len(candidates.ids)} groups. Rank parts of it, or take another strategy."
        )
    common: dict[str, Any] = {"policy_version": 0, "projection": projection}
    refresh = None
    if validation is not None:
        refresh = client.refresh_validation(
            _within(validation.ids), validation.sketches, **validation.part(0), aggregation="pooled", **common
        )
    if candidates.dots is not None and refresh is not None:
        common["dots_version"] = refresh.validation_version
    replies: list[Ranking] = [
        client.score(
            candidates.ids[start : start + CHUNK],
            candidates.sketches[start : start + CHUNK],
            **candidates.part(start),
            strategy=strategy,
            **common,
        )
        for start in range(0, len(candidates.ids), CHUNK)
    ]
    return _joined(replies, refresh)


def _within(ids: Sequence[str]) -> Sequence[str]:
    if len(ids) > CHUNK:
        raise GradAlignError(
            f"there are {len(ids)} validation groups; expected at most {CHUNK}. A few dozen problems do."
        )
    return ids


def _joined(replies: Sequence[Ranking], refresh: RefreshReply | None) -> Scored:
    priorities: dict[str, float] = {}
    alignments: dict[str, float | None] = {}
    for reply in replies:
        priorities.update(zip(reply.problem_ids, reply.priorities, strict=True))
        alignments.update(zip(reply.problem_ids, _filled(reply), strict=True))
    known = [reply.reliability for reply in replies if reply.reliability is not None]
    advised = [reply.advised_dim for reply in replies if reply.advised_dim is not None]
    return Scored(
        priorities,
        alignments,
        refresh,
        min(known) if known else None,
        max(advised) if advised else None,
        {row.problem_id: row.reason for reply in replies for row in reply.rejected},
    )


def _filled(reply: Ranking) -> list[float | None]:
    return list(reply.alignments) if reply.alignments is not None else [None] * len(reply.problem_ids)


def rank_order(priorities: dict[str, float]) -> list[str]:
    """Problem ids best first; ties by id."""
    return sorted(priorities, key=lambda problem_id: (-priorities[problem_id], problem_id))


def spearman(one: Floats, other: Floats) -> float:
    """Spearman's rank correlation of two columns without ties, [n] each; nan for fewer than 3."""
    if len(one) < 3:
        return float("nan")
    left, right = (np.argsort(np.argsort(column)).astype(float) for column in (one, other))
    return float(np.corrcoef(left, right)[0, 1])
