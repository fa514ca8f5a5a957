"""What is stored of a run: its meta hash."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradalign import RunState

__all__ = ["PRODUCTS", "RunRecord"]

PRODUCTS = "products"
"""Stands where other runs have the id of their projection, so that neither takes what is of the other."""
_FULL_DEVIATIONS = 1.5


@dataclass(frozen=True)
class RunRecord:
    """The fields of a run that a request is checked against.

    Attributes:
        run_id: the training job.
        fields: the meta hash, decoded.
    """

    run_id: str
    fields: Mapping[str, str]

    @property
    def projection_id(self) -> str | None:
        """Id of the run's projection."""
        return self.fields.get("projection_id")

    @property
    def projection(self) -> dict[str, Any] | None:
        """The run's projection map."""
        text = self.fields.get("projection")
        return json.loads(text) if text else None

    @property
    def kind(self) -> str | None:
        """`products` or `sketches`; None before the first request."""
        held = self.projection_id
        return None if held is None else "products" if held == PRODUCTS else "sketches"

    @property
    def alignment_kind(self) -> str | None:
        """What the alignments of a run of products are; None before it has any."""
        return self.fields.get("alignment_kind")

    @property
    def epoch(self) -> int:
        """Highest fencing token seen."""
        return int(self.fields.get("epoch", 0))

    @property
    def policy_version(self) -> int:
        """Highest policy version seen; -1 before the first."""
        return int(self.fields.get("policy_version", -1))

    @property
    def strategy(self) -> str:
        """The strategy of a /score that names none."""
        return self.fields.get("strategy", "cosine")

    @property
    def validation_version(self) -> int:
        """Current validation version; 0 before the first."""
        return int(self.fields.get("validation_version", 0))

    @property
    def validation_counter(self) -> int:
        """Highest validation version ever made; a restore does not lower it."""
        return int(self.fields.get("validation_counter", 0))

    @property
    def incarnation(self) -> str:
        """Tells a run from an earlier, deleted one of the same name."""
        return self.fields.get("incarnation", "")

    def spread(self) -> tuple[float, float] | None:
        """Discounted mean and standard deviation of the run's alignments; None before the first scores."""
        weight = float(self.fields.get("spread_weight", 0))
        if weight < 1:
            return None
        mean = float(self.fields["spread_sum"]) / weight
        variance = float(self.fields["spread_square"]) / weight - mean * mean
        return mean, math.sqrt(max(variance, 0.0))

    @property
    def strength(self) -> float:
        """The alignment to expect of a problem like the validation problems; 1 where no two were ever sent at once.

        Where it cannot be told from the validation problems, since their products came without exact norms, one and a half
        times the run's spread: what a group's weight is 1 at.
        """
        if self.kind == "products" and (self.alignment_kind != "cosine" or "likeness" not in self.fields):
            moments = self.spread()
            return _FULL_DEVIATIONS * moments[1] if moments and moments[1] > 0 else 1.0
        return math.sqrt(float(self.fields.get("likeness", 1.0)))

    def state(self) -> RunState:
        """The run as the wire shows it."""
        get = self.fields.get
        return RunState(
            run_id=self.run_id,
            epoch=self.epoch,
            policy_version=self.policy_version,
            projection=self.projection,
            strategy=self.strategy,
            validation_version=self.validation_version,
            validation_policy_version=_int_or_none(get("validation_policy_version")),
            validation_problems=int(get("validation_problems", 0)),
            coherence=_float_or_none(get("coherence")),
            reliability=_float_or_none(get("reliability")),
            problems=int(get("problems", 0)),
            rounds=int(get("rounds", 0)),
            created_at=float(get("created_at", 0)),
            updated_at=float(get("updated_at", 0)),
            kind=self.kind or "sketches",
            alignment_kind=self.alignment_kind if self.kind == "products" else "cosine",
            products_quotient=_float_or_none(get("products_quotient")),
            rollout_reliability=_float_or_none(get("rollout_reliability")),
        )


def _int_or_none(text: str | None) -> int | None:
    return None if text is None else int(text)


def _float_or_none(text: str | None) -> float | None:
    return None if text is None else float(text)
