"""The scorer's view of what was measured: priorities and alignments of all groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gradalign import Client
from gradalign.errors import GradAlignError
from gradalign.wire.projection import Projection
from gradalign.wire.replies import Ranking, RefreshReply
from gradalign_trainer.rank.steps.gradient import REFERENCE_EPSILON
from gradalign_trainer.rank.steps.settings import RankSettings

__all__ = [
    "CHUNK",
    "Columns",
    "Scored",
    "Scoring",
    "check_sizes",
    "rank_order",
    "sketch_spearman",
    "spearman",
    "with_epsilon",
]

Floats = npt.NDArray[np.float64]
Row = npt.NDArray[np.float32]
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

    def figures(self) -> dict[str, Any]:
        """The columns beside ids and sketches, of those that are there."""
        named = ("tokens", "rollouts", "pass_rates", "dots", "norms")
        columns = {name: getattr(self, name) for name in named}
        return {name: list(column) for name, column in columns.items() if column is not None}

    def chunks(self) -> Iterator[Columns]:
        """The same in parts of at most `CHUNK` groups."""
        for start in range(0, len(self.ids), CHUNK):
            rows = slice(start, start + CHUNK)
            yield Columns(self.ids[rows], self.sketches[rows], **{name: c[rows] for name, c in self.figures().items()})


def check_sizes(settings: RankSettings, candidates: int, validation: int) -> None:
    """Refuse what the scorer cannot take, before anything is measured.

    Args:
        settings: of the ranking.
        candidates: groups.
        validation: groups.

    Raises:
        GradAlignError: the strategy ranks candidates against one another, or validation groups are sent one by one, and
            there are too many for one request.
    """
    strategy = settings.asked_strategy
    if strategy in TOGETHER and candidates > CHUNK:
        raise GradAlignError(
            f"--strategy {strategy} compares candidates with one another, at most {CHUNK} at once; the file has "
            f"{candidates} groups. Rank parts of it, or take another strategy."
        )
    if settings.against is None and validation > CHUNK:
        raise GradAlignError(
            f"there are {validation} validation groups; expected at most {CHUNK}. A few dozen problems do."
        )


@dataclass(slots=True)
class Scored:
    """What came of it, beside priorities and alignments.

    Attributes:
        refresh: the answer to the validation gradient; None where none was sent.
        reliability: expected correlation of sketched with exact alignments; None where the scorer gives none.
        advised_dim: the dim that would do, where `reliability` is low.
        rejected: reasons by problem id of rows that the scorer left out.
    """

    refresh: RefreshReply | None = None
    reliability: float | None = None
    advised_dim: int | None = None
    rejected: dict[str, str] = field(default_factory=dict)

    def add(self, reply: Ranking) -> None:
        """Take in what a reply says: of several, the lowest reliability and the largest dim."""
        if reply.reliability is not None:
            before = reply.reliability if self.reliability is None else self.reliability
            self.reliability = min(reply.reliability, before)
        if reply.advised_dim is not None:
            self.advised_dim = max(reply.advised_dim, self.advised_dim or 0)
        self.rejected.update({row.problem_id: row.reason for row in reply.rejected})


class Scoring:
    """Asks the scorer for the priorities of candidates, in requests of bounded size.

    Args:
        client: of the scorer.
        projection: of the sketches.
        strategy: the scorer's.

    Attributes:
        scored: what came of it, complete once all replies are taken.
    """

    def __init__(self, client: Client, projection: Projection, strategy: str) -> None:
        self._client, self._strategy = client, strategy
        self._common: dict[str, Any] = {"policy_version": 0, "projection": projection}
        self.scored = Scored()

    def refresh(self, validation: Columns) -> None:
        """Send the validation gradient.

        Raises:
            GradAlignError: what the client raises.
        """
        self.scored.refresh = self._client.refresh_validation(
            validation.ids, validation.sketches, **validation.figures(), aggregation="pooled", **self._common
        )

    def replies(self, candidates: Iterable[Columns]) -> Iterator[tuple[Ranking, list[float | None]]]:
        """The reply to each part, and its alignments: None for all where there is no validation gradient.

        Args:
            candidates: in parts of at most `CHUNK`.

        Raises:
            GradAlignError: what the client raises.
        """
        for part in candidates:
            common = dict(self._common)
            if part.dots is not None and self.scored.refresh is not None:
                common["dots_version"] = self.scored.refresh.validation_version
            reply: Ranking = self._client.score(
                part.ids, part.sketches, **part.figures(), strategy=self._strategy, **common
            )
            self.scored.add(reply)
            yield reply, _filled(reply)


def _filled(reply: Ranking) -> list[float | None]:
    return list(reply.alignments) if reply.alignments is not None else [None] * len(reply.problem_ids)


def with_epsilon(columns: Columns, length: float) -> Columns:
    """As the reference divides: by norms plus 1e-5, of the candidate and of the validation gradient.

    Args:
        columns: with exact products and norms.
        length: norm of the validation gradient.
    """
    assert columns.dots is not None
    assert columns.norms is not None
    shrunk = [dot * length / (length + REFERENCE_EPSILON) for dot in columns.dots]
    return replace(columns, dots=shrunk, norms=[norm + REFERENCE_EPSILON if norm else 0.0 for norm in columns.norms])


def rank_order(priorities: dict[str, float]) -> list[str]:
    """Problem ids best first; ties by id."""
    return sorted(priorities, key=lambda problem_id: (-priorities[problem_id], problem_id))


def sketch_spearman(groups: Iterable[tuple[float, float, Row]], reference: Row) -> float:
    """Spearman's correlation of sketched with exact alignments over the groups with a signal; nan for fewer than 3.

    Args:
        groups: exact product, exact norm and sketch of each.
        reference: sketch of the validation gradient.
    """
    exact, sketched = [], []
    towards = reference.astype(np.float64)
    for dot, norm, row in groups:
        if norm > 0:
            exact.append(dot / norm)
            sketched.append(float(row @ towards / np.linalg.norm(row)))
    return spearman(np.array(sketched), np.array(exact))


def spearman(one: Floats, other: Floats) -> float:
    """Spearman's rank correlation of two columns without ties, [n] each; nan for fewer than 3."""
    if len(one) < 3:
        return float("nan")
    left, right = (np.argsort(np.argsort(column)).astype(float) for column in (one, other))
    return float(np.corrcoef(left, right)[0, 1])
