"""The writes of a run, as the routes hand them to the store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from gradalign import Projection, RoundRecord
from gradalign_scorer.ranking.predictor import HALF_LIFE, Moments
from gradalign_scorer.ranking.weighting import DISCOUNT, Spread
from gradalign_scorer.store.records.runs import PASS_RATES, PRODUCTS
from gradalign_scorer.store.records.validations import ValidationRecord

__all__ = ["Commit", "RefreshCommit", "ScoreCommit", "SelectionCommit"]

# A row of a score commit; commit_scores.lua has the same layout.
_ROW_DTYPE = np.dtype(
    [
        ("alignment", "<f4"),
        ("evidence", "<f4"),
        ("priority", "<f8"),
        ("pass_rate", "<f4"),
        ("signal", "u1"),
        ("selected", "u1"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What every write carries.

    Attributes:
        run_id: the training job.
        policy_version: of the request.
        epoch: fencing token; None for none.
        request_id: None: a repetition is applied again.
        digest: of the request's content; the same id with another digest is refused.
        reply: the bytes to give back to a repetition.
        record: what `GET /runs/{run}/rounds` will show; its `round` is filled in when read.
    """

    run_id: str
    policy_version: int
    epoch: int | None
    request_id: str | None
    digest: bytes
    reply: bytes
    record: RoundRecord

    def header(self) -> dict[str, Any]:
        """The script's request map."""
        return {
            "policy_version": self.policy_version,
            "epoch": -1 if self.epoch is None else self.epoch,
            "request_id": self.request_id or "",
            "digest": self.digest,
            "reply": self.reply,
            "projection_id": "",
        }

    def arguments(self) -> Sequence[bytes | str]:
        """The script's arguments behind the request map."""
        return ()


@dataclass(frozen=True, kw_only=True)
class ScoreCommit(Commit):
    """The scores of a request; columns run parallel to `ids`.

    Attributes:
        projection: of the request; None of products and pass rates.
        validation_version: that the alignments were computed against; 0 for none.
        strategy: named by the request; None keeps the run's.
        ids: the scored problems, 0 to 4096 of them.
        alignments: float [n]; NaN where no validation gradient was held.
        priorities: float [n]; not NaN.
        signal: bool [n]; False for a zero sketch, which is no evidence.
        selected: bool [n].
        pass_rates: float [n]; None keeps what is known.
        reliability: None keeps the run's.
        strength: of these alignments as evidence: what a problem like the validation problems is expected to have.
        evidence_kept: share of earlier evidence that each of these scores leaves.
        moments: of these scores, to be added to the run's; None where no features were sent.
        evidence: float [n], the alignments without a unit, for what a run remembers of them; None: as they are.
        alignment_kind: of the alignments, which stays that of the run; None where they are of sketches.
        scatter: of the alignments before `evidence` was made of them; None where they have a unit of their own.
        rollout_reliability: None keeps the run's.
        of_rates: whether there is nothing but pass rates, which makes the run one of these.
        observed: float64 [n, 2], successes and failures to add to the beliefs; None where none is kept.
        discount: share of its earlier rollouts that each of these beliefs keeps.
    """

    projection: Projection | None
    validation_version: int
    strategy: str | None
    ids: list[str]
    alignments: npt.NDArray[np.floating[Any]]
    priorities: npt.NDArray[np.floating[Any]]
    signal: npt.NDArray[np.bool_]
    selected: npt.NDArray[np.bool_]
    pass_rates: npt.NDArray[np.floating[Any]] | None = None
    reliability: float | None = None
    strength: float = 1.0
    evidence_kept: float = 0.9
    moments: Moments | None = None
    evidence: npt.NDArray[np.floating[Any]] | None = None
    scatter: Spread | None = None
    alignment_kind: str | None = None
    rollout_reliability: float | None = None
    of_rates: bool = False
    observed: npt.NDArray[np.float64] | None = None
    discount: float = 1.0

    @property
    def kind(self) -> str:
        """Of the run that it belongs to."""
        return PASS_RATES if self.of_rates else _kind(self.projection)

    def header(self) -> dict[str, Any]:
        """The script's request map."""
        values = self._evidence()
        spread = Spread.of(values[self.signal & np.isfinite(values)])
        return {
            **super().header(),
            **_projection_fields(self.kind, self.projection),
            "validation_version": self.validation_version,
            "strategy": self.strategy or "",
            "reliability": _or_minus_one(self.reliability),
            "rollout_reliability": _or_minus_one(self.rollout_reliability),
            "alignment_kind": self.alignment_kind or "",
            **_sums("spread", spread),
            **_sums("scatter", self.scatter or Spread()),
            "discount": DISCOUNT,
            "strength": self.strength,
            "evidence_kept": self.evidence_kept,
            "moments_kept": 1.0 if self.moments is None else 0.5 ** (self.moments.count / HALF_LIFE),
            "belief_kept": self.discount,
        }

    def _evidence(self) -> npt.NDArray[np.floating[Any]]:
        return self.alignments if self.evidence is None else self.evidence

    def arguments(self) -> Sequence[bytes | str]:
        """The rows, the ids, the moments and what was observed."""
        rows = np.zeros(len(self.ids), dtype=_ROW_DTYPE)
        rows["alignment"], rows["evidence"], rows["priority"] = self.alignments, self._evidence(), self.priorities
        rows["pass_rate"] = np.nan if self.pass_rates is None else self.pass_rates
        rows["signal"], rows["selected"] = self.signal, self.selected
        assert not np.isnan(rows["priority"]).any(), "a priority is NaN"
        # One argument, since the client packs thousands of them one by one.
        moments = b"" if self.moments is None else self.moments.pack()
        observed = b"" if self.observed is None else np.ascontiguousarray(self.observed, dtype="<f8").tobytes()
        return (rows.tobytes(), msgpack.packb(self.ids, use_bin_type=False), moments, observed)


@dataclass(frozen=True, kw_only=True)
class RefreshCommit(Commit):
    """A new validation gradient.

    Attributes:
        projection: of the request; None of products.
        validation: with the version after the run's highest; refused where another writer took it.
        problems: how many problems went into it.
        coherence: of those problems; None where it is not known.
        base: the version that it was computed from, which must still be the current one; 0 for none, and None where
            nothing of an earlier one is in it.
        quotient: of the sum of products and the length of the gradient; None of sketches.
    """

    projection: Projection | None
    validation: ValidationRecord
    problems: int
    coherence: float | None
    base: int | None = None
    quotient: float | None = None

    @property
    def kind(self) -> str:
        """Of the run that it belongs to."""
        return _kind(self.projection)

    def header(self) -> dict[str, Any]:
        """The script's request map."""
        return {
            **super().header(),
            **_projection_fields(self.kind, self.projection),
            "validation_version": self.validation.version,
            "validation_base": -1 if self.base is None else self.base,
            "validation_problems": self.problems,
            "coherence": _or_minus_one(self.coherence),
            "products_quotient": _or_minus_one(self.quotient),
        }

    def arguments(self) -> Sequence[bytes | str]:
        """The packed validation gradient."""
        return (self.validation.pack(),)


@dataclass(frozen=True, kw_only=True)
class SelectionCommit(Commit):
    """Problems picked from the stored priorities; one that was never scored is remembered as picked.

    Attributes:
        ids: the picked problems.
    """

    ids: list[str]

    def arguments(self) -> Sequence[bytes | str]:
        """The ids."""
        return self.ids


def _sums(name: str, spread: Spread) -> dict[str, float]:
    return {f"{name}_weight": spread.weight, f"{name}_sum": spread.total, f"{name}_square": spread.square}


def _or_minus_one(value: float | None) -> float:
    return -1.0 if value is None else float(value)


def _kind(projection: Projection | None) -> str:
    return PRODUCTS if projection is None else "sketches"


def _projection_fields(kind: str, projection: Projection | None) -> dict[str, Any]:
    if projection is None:
        return {"projection_id": kind, "projection": ""}
    return {"projection_id": projection.id, "projection": json.dumps(projection.to_map())}
