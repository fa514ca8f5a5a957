"""The writes of a run, as the routes hand them to the store."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradalign import Projection, RoundRecord
from gradalign_scorer.store.records import ValidationRecord

__all__ = ["Commit", "RefreshCommit", "ScoreCommit", "SelectionCommit"]


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

    def arguments(self) -> dict[str, Any]:
        """The script's request map."""
        return {
            "policy_version": self.policy_version,
            "epoch": -1 if self.epoch is None else self.epoch,
            "request_id": self.request_id or "",
            "digest": self.digest,
            "reply": self.reply,
            "projection_id": "",
        }


@dataclass(frozen=True, kw_only=True)
class ScoreCommit(Commit):
    """The scores of a request; columns run parallel to `ids`.

    Attributes:
        projection: of the request.
        validation_version: that the alignments were computed against; 0 for none.
        strategy: named by the request; None keeps the run's.
        ids: the scored problems.
        alignments: float64 [n]; NaN where no validation gradient was held.
        priorities: float64 [n].
        norms: float64 [n].
        signal: bool [n]; False for a zero sketch, which is no evidence.
        selected: bool [n].
        pass_rates: float64 [n], or None.
        reliability: None keeps the run's.
    """

    projection: Projection
    validation_version: int
    strategy: str | None
    ids: list[str]
    alignments: npt.NDArray[np.float64]
    priorities: npt.NDArray[np.float64]
    norms: npt.NDArray[np.float64]
    signal: npt.NDArray[np.bool_]
    selected: npt.NDArray[np.bool_]
    pass_rates: npt.NDArray[np.float64] | None = None
    reliability: float | None = None

    def arguments(self) -> dict[str, Any]:
        """The script's request map."""
        evidence = self.alignments[self.signal & np.isfinite(self.alignments)]
        unknown = np.full(len(self.ids), -1.0)
        return {
            **super().arguments(),
            **_projection_arguments(self.projection),
            "validation_version": self.validation_version,
            "named_strategy": self.strategy or "",
            "reliability": -1.0 if self.reliability is None else self.reliability,
            "ids": self.ids,
            "alignments": self.alignments.tolist(),
            "priorities": self.priorities.tolist(),
            "norms": self.norms.tolist(),
            "signal": self.signal.astype(int).tolist(),
            "selected": self.selected.astype(int).tolist(),
            "pass_rates": (unknown if self.pass_rates is None else self.pass_rates).tolist(),
            "spread_weight": float(len(evidence)),
            "spread_sum": float(evidence.sum()),
            "spread_square": float(np.square(evidence).sum()),
        }


@dataclass(frozen=True, kw_only=True)
class RefreshCommit(Commit):
    """A new validation gradient.

    Attributes:
        projection: of the request.
        validation: with the version after the run's highest; refused where another writer took it.
        problems: how many problems went into it.
        coherence: of those problems.
    """

    projection: Projection
    validation: ValidationRecord
    problems: int
    coherence: float

    def arguments(self) -> dict[str, Any]:
        """The script's request map."""
        return {
            **super().arguments(),
            **_projection_arguments(self.projection),
            "validation_version": self.validation.version,
            "validation_problems": self.problems,
            "coherence": self.coherence,
        }


@dataclass(frozen=True, kw_only=True)
class SelectionCommit(Commit):
    """Problems picked from the stored priorities."""

    ids: list[str] = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        """The script's request map."""
        return {**super().arguments(), "ids": self.ids}


def _projection_arguments(projection: Projection) -> dict[str, Any]:
    return {"projection_id": projection.id, "projection": json.dumps(projection.to_map())}
