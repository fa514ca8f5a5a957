"""What is stored of a run: its meta hash."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from gradalign import RunState, ScoreRequest
from gradalign_scorer.ranking.weighting import Spread

__all__ = ["PASS_RATES", "PRODUCTS", "RunRecord", "kind_of"]

PRODUCTS, PASS_RATES = "products", "pass_rates"
"""Stand where other runs have the id of their projection, so that none takes what is of another kind."""
_FULL_DEVIATIONS = 1.5


def kind_of(projection_id: str) -> str:
    """`products`, `pass_rates` or `sketches`, by what a run holds as the id of its projection."""
    return projection_id if projection_id in (PRODUCTS, PASS_RATES) else "sketches"


@dataclass(frozen=True)
class RunRecord:
    """The fields of a run that a request is checked against.

    Attributes:
        run_id: the training job.
        fields: the meta hash, decoded.
    """

    run_id: str
    fields: Mapping[str, str]

    @classmethod
    def begun_by(cls, request: ScoreRequest) -> Self:
        """The record of a run whose first request this is, before it is stored."""
        kind = request.kind
        return cls(request.run_id, {"projection_id": kind} if kind in (PRODUCTS, PASS_RATES) else {})

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
        """`products`, `pass_rates` or `sketches`; None before the first request."""
        held = self.projection_id
        return None if held is None else kind_of(held)

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
        return self.fields.get("strategy", "posterior" if self.kind == PASS_RATES else "cosine")

    @property
    def keeps_beliefs(self) -> bool:
        """Whether any belief about a success rate was ever written."""
        return "keeps_beliefs" in self.fields

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

    def spread(self) -> Spread | None:
        """Of the evidence that the run's alignments were; None before the first scores."""
        found = self._spread("spread")
        return found if found.weight >= 1 else None

    def scatter(self) -> Spread:
        """Of alignments without exact norms, before they are divided by their own standard deviation."""
        return self._spread("scatter")

    def _spread(self, name: str) -> Spread:
        return Spread(*(float(self.fields.get(f"{name}_{part}", 0)) for part in ("weight", "sum", "square")))

    @property
    def strength(self) -> float:
        """The alignment to expect of a problem like the validation problems; 1 where no two were ever sent at once.

        Where it cannot be told from the validation problems, since their products came without exact norms, one and a half
        times the spread that fresh rollouts would show again: what a group's weight is 1 at. Late in a training, when
        rollouts alone make a ranking, its alignments are no evidence, and what was learned before stays.
        """
        if self.kind == "products" and (self.alignment_kind != "cosine" or "likeness" not in self.fields):
            spread = self.spread()
            repeated = math.sqrt(float(self.fields.get("mean_reliability", 1.0)))
            return _FULL_DEVIATIONS * spread.deviation * repeated if spread and spread.deviation > 0 else repeated
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
            alignment_kind="cosine" if self.kind in (None, "sketches") else self.alignment_kind,
            products_quotient=_float_or_none(get("products_quotient")),
            rollout_reliability=_float_or_none(get("rollout_reliability")),
        )


def _int_or_none(text: str | None) -> int | None:
    return None if text is None else int(text)


def _float_or_none(text: str | None) -> float | None:
    return None if text is None else float(text)
