"""The replies of the wire. Who makes one: the scorer. Who reads one: a trainer, through a client.

Keys that a newer scorer adds are ignored, so an older client keeps working.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from gradalign.errors import MalformedRequest

__all__ = [
    "ProblemPage",
    "ProblemState",
    "Ranking",
    "RankingOutline",
    "RefreshReply",
    "RejectedProblem",
    "RoundRecord",
    "RunState",
    "RunWarning",
    "Selection",
]


def _plain(value: Any) -> Any:
    """Replies inside of a reply as maps."""
    if isinstance(value, list) and value and isinstance(value[0], _Reply):
        return [row.to_map() for row in value]
    return value


class _Reply:
    """Reads a reply from a map and writes it as one."""

    def to_map(self) -> dict[str, Any]:
        """The map that goes on the wire; its lists are the reply's own."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_map(cls, value: Any) -> Self:
        """Read the wire's map, ignoring keys this version does not know."""
        if not isinstance(value, Mapping):
            raise MalformedRequest(f"the reply is a {type(value).__name__}; expected a map for {cls.__name__}.")
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        try:
            return cls(**{key: item for key, item in value.items() if key in known})
        except TypeError as error:
            raise MalformedRequest(f"the reply is not a {cls.__name__}: {error}.") from None


@dataclass(frozen=True, kw_only=True)
class RejectedProblem(_Reply):
    """A row that was left out, and why (NaN or Inf among its values)."""

    problem_id: str
    reason: str


def _rejected(rows: Any) -> list[RejectedProblem]:
    return [row if isinstance(row, RejectedProblem) else RejectedProblem.from_map(row) for row in rows]


@dataclass(frozen=True, kw_only=True)
class Ranking(_Reply):
    """The answer of `POST /score`: columns of equal length, ranked best first; ties by problem id.

    Attributes:
        run_id: the training job.
        policy_version: as sent.
        validation_version: the validation gradient that every alignment here was computed against; None where the
            strategy uses none and the run holds none.
        validation_policy_version: the policy that validation gradient was taken at.
        strategy: the rule that ranked.
        problem_ids: the scored problems.
        priorities: what the ranking sorts by.
        alignments: with the validation gradient, in the unit that `alignment_kind` names; None for all where the run holds
            no validation.
        weights: share of its gradient that each group should keep when training on all of them, in [0, 1].
        norms: gradient norms, exact where they were sent; None where only products or pass rates were.
        no_signal: problems whose sketch, or all of whose products, are zero (all rollouts had the same reward): alignment 0.
            Of pass rates: those of 0 and of 1.
        selected: the best `select` of this request.
        rejected: rows left out, each with a reason.
        reliability: expected Pearson correlation of sketched with exact alignments, in [0, 1]; 1 with `dots`; None
            for fewer than 3 problems with a signal.
        advised_dim: the dim at which `reliability` would reach 0.95, where it is below 0.9; else None.
        request_id: as sent.
        alignment_kind: `cosine`, in [-1, 1]; of products without norms `product`, in the unit of the gradients; of products
            with norms of the head's gradient `head`, their quotient, which ranks like a cosine and may be beyond 1. None of
            pass rates, which have no alignments.
        standard_errors: by how much each alignment would differ with fresh rollouts, from the spread of its rollouts'
            products; None for a problem with one rollout, and for all where sketches were sent.
        rollout_reliability: expected Pearson correlation of this ranking's alignments with those of fresh rollouts, in
            [0, 1]; None for fewer than 3 problems of two rollouts or more, and for sketches.
        rollout_weights: share of its gradient that each rollout should keep, in [0, 1], a list for each of `problem_ids` in
            the order of its products; None where not asked for.
    """

    run_id: str
    policy_version: int
    validation_version: int | None
    validation_policy_version: int | None
    strategy: str
    problem_ids: list[str]
    priorities: list[float]
    alignments: list[float] | None
    weights: list[float]
    norms: list[float] | None
    no_signal: list[str]
    selected: list[str]
    rejected: list[RejectedProblem]
    reliability: float | None = None
    advised_dim: int | None = None
    request_id: str | None = None
    alignment_kind: str | None = "cosine"
    standard_errors: list[float | None] | None = None
    rollout_reliability: float | None = None
    rollout_weights: list[list[float]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rejected", _rejected(self.rejected))

    def weight_of(self) -> dict[str, float]:
        """Weight by problem id."""
        return dict(zip(self.problem_ids, self.weights, strict=True))


@dataclass(frozen=True, kw_only=True)
class RefreshReply(_Reply):
    """The answer of `POST /refresh_validation`.

    Attributes:
        run_id: the training job.
        policy_version: as sent.
        validation_version: 1 for the run's first validation gradient, then counting up.
        problems: how many problems went into it.
        coherence: norm of the mean unit gradient: 1 when all validation problems agree, about 1/sqrt(n) when they
            share nothing. Of products: the mean cosine of the problems with the validation gradient, which is the same
            where their norms are equal; None without exact norms.
        rejected: rows left out, each with a reason.
        request_id: as sent.
        products_quotient: sum of the products over `lengths`: 1 where they are exact; None where sketches were sent.
    """

    run_id: str
    policy_version: int
    validation_version: int
    problems: int
    coherence: float | None
    rejected: list[RejectedProblem]
    request_id: str | None = None
    products_quotient: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rejected", _rejected(self.rejected))


@dataclass(frozen=True, kw_only=True)
class Selection(_Reply):
    """The answer of `POST /select`.

    Attributes:
        run_id: the training job.
        policy_version: as sent.
        selected: the picked problems, best first.
        priorities: the shrunken priority of each, None for a problem never scored; with `posterior`, minus the distance
            from one half of the rate that was drawn.
        explored: those of `selected` that the exploration share picked.
        request_id: as sent.
    """

    run_id: str
    policy_version: int
    selected: list[str]
    priorities: list[float | None]
    explored: list[str]
    request_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunWarning(_Reply):
    """Something about a run that its owner should look at.

    Attributes:
        kind: for programs: `silent`, `validation_old`, `validation_incoherent`, `rejected`, `sketch_small`, `no_signal`,
            `products_off`, `nothing_to_rank`; more may come.
        message: for people, with the figure that led to it.
    """

    kind: str
    message: str


@dataclass(frozen=True, kw_only=True)
class RunState(_Reply):
    """What the scorer holds of a run: the answer of `GET /runs/{run}`.

    Attributes:
        run_id: the training job.
        epoch: highest fencing token seen.
        policy_version: highest policy version seen.
        projection: the run's projection map; None in a run of products or pass rates.
        strategy: the default of a /score that names none.
        validation_version: current validation version; 0 before the first.
        validation_policy_version: the policy it was taken at.
        validation_problems: how many problems went into it.
        coherence: its coherence.
        reliability: of the last scored request that had one.
        problems: how many problems were ever scored.
        rounds: how many requests were committed.
        created_at: Unix time in seconds.
        updated_at: Unix time in seconds.
        warnings: the most pressing first; none for a run that nobody has written to for a day.
        kind: of the run's rows: `sketches`, `products` or `pass_rates`.
        alignment_kind: of the run's alignments, as in `Ranking`; None before a run of products has any, and of pass rates.
        products_quotient: of the current validation gradient, as in `RefreshReply`.
        rollout_reliability: of the last scored request that had one.
    """

    run_id: str
    epoch: int
    policy_version: int
    projection: dict[str, Any] | None
    strategy: str
    validation_version: int
    validation_policy_version: int | None
    validation_problems: int
    coherence: float | None
    reliability: float | None
    problems: int
    rounds: int
    created_at: float
    updated_at: float
    warnings: list[RunWarning] = field(default_factory=list)
    kind: str = "sketches"
    alignment_kind: str | None = "cosine"
    products_quotient: float | None = None
    rollout_reliability: float | None = None

    def __post_init__(self) -> None:
        rows = [row if isinstance(row, RunWarning) else RunWarning.from_map(row) for row in self.warnings]
        object.__setattr__(self, "warnings", rows)


@dataclass(frozen=True, kw_only=True)
class ProblemState(_Reply):
    """What the scorer remembers of a problem: a row of `GET /runs/{run}/problems`.

    Attributes:
        problem_id: the problem.
        priority: as last ranked.
        alignment: as last scored; None where no validation gradient was held.
        policy_version: at which it was last scored.
        times_scored: how often.
        times_selected: how often it was marked or picked.
        pass_rate: as last sent; None where never sent.
        history: oldest first, the last few `{policy_version, alignment}`; only in `GET /runs/{run}/problems/{id}`.
        belief: `[alpha, beta]` of the Beta distribution that is believed of its success rate, as it was last renewed; only
            there too. None where no belief is kept.
    """

    problem_id: str
    priority: float
    alignment: float | None
    policy_version: int
    times_scored: int
    times_selected: int
    pass_rate: float | None
    history: list[dict[str, Any]] = field(default_factory=list)
    belief: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class ProblemPage(_Reply):
    """A page of problems by priority. `next` is the cursor of the next page, None on the last one."""

    problems: list[ProblemState]
    next: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "problems", _problems(self.problems))


def _problems(rows: Any) -> list[ProblemState]:
    return [row if isinstance(row, ProblemState) else ProblemState.from_map(row) for row in rows]


@dataclass(frozen=True, kw_only=True)
class RankingOutline(_Reply):
    """A ranking of any length at a glance: the answer of `GET /runs/{run}/outline`.

    Attributes:
        problems: how many are ranked.
        best: the first ones.
        worst: the last ones, the very last first.
        sample: evenly spaced over the ranking, both ends included; all of them where there are few.
    """

    problems: int
    best: list[ProblemState]
    worst: list[ProblemState]
    sample: list[ProblemState]

    def __post_init__(self) -> None:
        for part in ("best", "worst", "sample"):
            object.__setattr__(self, part, _problems(getattr(self, part)))


@dataclass(frozen=True, kw_only=True)
class RoundRecord(_Reply):
    """One committed request, as `GET /runs/{run}/rounds` lists it.

    Attributes:
        round: counts up from 1 within the run.
        kind: `score`, `refresh`, `select` or `restore`.
        at: Unix time in seconds.
        policy_version: of the request.
        validation_version: that the request used or made; None where there was none.
        problems: rows that were taken.
        selected: how many were selected.
        summary: figures for plots: `strategy`, `alignment_quantiles` (0, .1, .25, .5, .75, .9, 1),
            `selected_alignment`, `selected_tenths` (how many were selected from each tenth of the ranking, the best tenth
            first; of a /score that by alignment, of a /select that by shrunken priority), `no_signal`, `rejected`,
            `mean_pass_rate`, `coherence`, `reliability`, `advised_dim`, `validation_age` (in policy versions),
            `explored`, `products_quotient`, `rollout_reliability` and what it comes of, `alignment_variance` and
            `rollout_variance`; each present where it applies.
    """

    round: int
    kind: str
    at: float
    policy_version: int
    validation_version: int | None
    problems: int
    selected: int
    summary: dict[str, Any] = field(default_factory=dict)
