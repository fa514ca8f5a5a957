"""The requests of the wire. Who makes one: a trainer, through a client. Who reads one: the scorer.

Values are checked where a message is made, so a client refuses what the scorer would, with the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from gradalign.errors import InvalidValue
from gradalign.wire.checks import (
    check_distinct_ids,
    check_features,
    check_int,
    check_name,
    check_number,
    check_numbers,
    check_one_of,
    shown,
)
from gradalign.wire.matrix import DTYPES, SketchMatrix
from gradalign.wire.projection import Projection

__all__ = ["AGGREGATIONS", "MAX_POOL", "MAX_PROBLEMS", "STRATEGIES", "RefreshRequest", "ScoreRequest", "SelectRequest"]

STRATEGIES = (
    "cosine",
    "dot",
    "anti",
    "norm",
    "learnalign",
    "accgreedy",
    "accuracy_band",
    "cosine_accuracy",
    "random",
    "diverse",
)
AGGREGATIONS = ("pooled", "mean", "normalized")
MAX_PROBLEMS = 4096
MAX_POOL = 1_000_000


class _Header:
    """Reads a message from a header map and writes it back; None fields stay off the wire."""

    required: ClassVar[tuple[str, ...]] = ()

    def header(self) -> dict[str, Any]:
        """The header map of this message, without absent fields."""
        header: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is None or isinstance(value, SketchMatrix):
                continue
            header[field.name] = value.to_map() if isinstance(value, Projection) else value
        return header

    @classmethod
    def _values(cls, header: Any, *, also: Sequence[str] = ()) -> dict[str, Any]:
        known = [f.name for f in fields(cls) if f.name != "sketches"]  # type: ignore[arg-type]
        if not isinstance(header, Mapping):
            raise InvalidValue(f"the header is {shown(header)}; expected a map with string keys.", param="header")
        unknown = [key for key in header if key not in known and key not in also]
        if unknown:
            raise InvalidValue(
                f"unknown key {shown(unknown[0])}; the keys of this request are {', '.join([*known, *also])}.",
                param=shown(unknown[0])[1:-1] if isinstance(unknown[0], str) else shown(unknown[0]),
            )
        missing = [key for key in (*cls.required, *also) if header.get(key) is None]
        if missing:
            raise InvalidValue(
                f"{missing[0]} is missing; {', '.join((*cls.required, *also))} are required.", param=missing[0]
            )
        return {key: value for key, value in header.items() if key in known and value is not None}


@dataclass(frozen=True, kw_only=True)
class _SketchRequest(_Header):
    """What /score and /refresh_validation share."""

    run_id: str
    policy_version: int
    projection: Projection
    problem_ids: list[str]
    sketches: SketchMatrix
    norms: list[float] | None = None
    rollouts: list[int] | None = None
    tokens: list[int] | None = None
    request_id: str | None = None
    epoch: int | None = None

    required: ClassVar[tuple[str, ...]] = ("run_id", "policy_version", "projection", "problem_ids")

    def __post_init__(self) -> None:
        check_name("run_id", self.run_id)
        _replace(self, "policy_version", check_int("policy_version", self.policy_version))
        _replace(self, "problem_ids", check_distinct_ids("problem_ids", self.problem_ids, most=MAX_PROBLEMS))
        self._check_per_problem("norms", low=0.0)
        self._check_per_problem("rollouts", low=0, integers=True)
        self._check_per_problem("tokens", low=0, integers=True)
        if self.request_id is not None:
            check_name("request_id", self.request_id)
        if self.epoch is not None:
            _replace(self, "epoch", check_int("epoch", self.epoch))
        self._check_sketches()

    def _check_per_problem(self, name: str, *, low: float, high: float = float("inf"), integers: bool = False) -> None:
        value = getattr(self, name)
        if value is not None:
            count = len(self.problem_ids)
            _replace(self, name, check_numbers(name, value, count=count, low=low, high=high, integers=integers))

    def _check_sketches(self) -> None:
        if (self.sketches.rows, self.sketches.dim) != (len(self.problem_ids), self.projection.dim):
            raise InvalidValue(
                f"the sketches are [{self.sketches.rows}, {self.sketches.dim}]; expected "
                f"[{len(self.problem_ids)} problem_ids, {self.projection.dim} = projection.dim].",
                param="sketches",
            )

    def header(self) -> dict[str, Any]:
        """The header map, with the dtype of the bin."""
        return {**super().header(), "dtype": self.sketches.dtype}

    @classmethod
    def from_header(cls, header: Any, data: memoryview) -> Self:
        """A request from the two msgpack objects of its body.

        Args:
            header: the decoded header map.
            data: the bytes of the bin.

        Raises:
            InvalidValue: naming the key, what was given and what was expected.
        """
        values = cls._values(header, also=("dtype",))
        projection = Projection.from_map(values["projection"])
        ids = check_distinct_ids("problem_ids", values["problem_ids"], most=MAX_PROBLEMS)
        dtype = check_one_of("dtype", header["dtype"], DTYPES)
        matrix = SketchMatrix(data, len(ids), projection.dim, dtype)
        return cls(**{**values, "projection": projection, "problem_ids": ids, "sketches": matrix})

    @classmethod
    def from_json(cls, body: Any) -> Self:
        """A request from a decoded JSON body, whose `sketches` are lists of numbers; `dtype` is not needed."""
        values = cls._values({key: value for key, value in _mapping(body).items() if key not in ("sketches", "dtype")})
        if "sketches" not in body:
            raise InvalidValue(
                "sketches is missing; expected a list of rows of numbers, one for each problem id.", param="sketches"
            )
        projection = Projection.from_map(values["projection"])
        return cls(**{**values, "projection": projection, "sketches": SketchMatrix.of_json(body["sketches"])})


@dataclass(frozen=True, kw_only=True)
class ScoreRequest(_SketchRequest):
    """Rank candidate problems. A trainer sends it to `POST /score`; a `Ranking` comes back.

    Attributes:
        run_id: the training job.
        policy_version: which weights the gradients were taken at.
        projection: how the sketches were made.
        problem_ids: distinct ids; row i of the sketches is problem i.
        sketches: [problems, dim].
        norms: exact gradient norms before projection. None: the sketches' own norms are used.
        rollouts: group size per problem.
        tokens: response tokens per problem.
        request_id: makes a retry exactly-once. None: a repeated request is applied again.
        epoch: fencing token; lower than one the run has seen is refused. None: not fenced.
        dots: exact products of each gradient with the unit validation gradient of `dots_version`.
        dots_version: the validation version of `dots`; must be the current one.
        pass_rates: mean reward of each group, in [0, 1]. None: strategies that need it are refused.
        strategy: one of STRATEGIES. None: the run's, which is the one last named, `cosine` at first.
        select: mark the best n of this request as selected. None: mark none.
        features: what is known of each problem before it is tried, [problems, 1 to 64], each with a spread of about 1: the
            run learns to predict from them how good a problem is, for weights and for `/select`. One width in a run. None:
            nothing is learned or predicted, and weights come of alignments alone.
    """

    dots: list[float] | None = None
    dots_version: int | None = None
    pass_rates: list[float] | None = None
    strategy: str | None = None
    select: int | None = None
    features: list[list[float]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_per_problem("dots", low=-float("inf"))
        self._check_per_problem("pass_rates", low=0.0, high=1.0)
        if (self.dots is None) != (self.dots_version is None):
            raise InvalidValue("dots and dots_version go together; send both or neither.", param="dots_version")
        if self.dots_version is not None:
            _replace(self, "dots_version", check_int("dots_version", self.dots_version))
        if self.strategy is not None:
            check_one_of("strategy", self.strategy, STRATEGIES)
        if self.select is not None:
            _replace(self, "select", check_int("select", self.select))
        if self.features is not None:
            _replace(self, "features", check_features("features", self.features, count=len(self.problem_ids)))


@dataclass(frozen=True, kw_only=True)
class RefreshRequest(_SketchRequest):
    """Replace the run's validation gradient. Sent to `POST /refresh_validation`; a `RefreshReply` comes back.

    Attributes:
        aggregation: `pooled` (sum weighted by `tokens`; without them as `mean`; the reference's rule), `mean` (plain
            mean) or `normalized` (sum of unit sketches). None: `pooled`.
        decay: in [0, 1]; the validation gradient becomes `decay` times the run's plus the mean gradient of this request,
            both as long as they are. A run without one begins with the mean. None: replaced, as by 0.
        decay_version: the validation version whose gradient decays, for a sender that keeps a sum of its own; another
            current version is refused. None: whichever is current.

    The other attributes are those of `ScoreRequest`.
    """

    aggregation: str | None = None
    decay: float | None = None
    decay_version: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregation is not None:
            check_one_of("aggregation", self.aggregation, AGGREGATIONS)
        if self.decay is not None:
            _replace(self, "decay", check_number("decay", self.decay, low=0.0, high=1.0))
        if self.decay_version is not None:
            _replace(self, "decay_version", check_int("decay_version", self.decay_version))
            if self.decay is None:
                raise InvalidValue(
                    "decay_version was sent without decay; send both, or neither.", param="decay_version"
                )


@dataclass(frozen=True, kw_only=True)
class SelectRequest(_Header):
    """Pick problems from the run's stored priorities. A trainer sends it to `POST /select`; a `Selection` comes back.

    Attributes:
        run_id: the training job.
        policy_version: the current one; staleness is counted from it.
        count: how many problems to pick.
        problem_ids: pick among these only; ids never scored may be among them. None: all problems ever scored.
        features: of `problem_ids`, as in `ScoreRequest`: pick what is expected to be best from its scores and its features,
            under one Thompson draw, instead of by stored priorities.
        half_life: staleness, in policy versions, at which a score has shrunk half-way to the run's mean. Not used with
            `features`.
        exploration: share of the picks, in [0, 1], that goes to problems never scored or longest unscored; with `features`,
            to problems drawn uniformly.
        cooldown: a problem picked less than this many policy versions ago is picked only when no other is left.
        seed: seed of the exploration; the same request on the same state picks the same problems.
        request_id: makes a retry exactly-once.
        epoch: fencing token.
    """

    run_id: str
    policy_version: int
    count: int
    problem_ids: list[str] | None = None
    features: list[list[float]] | None = None
    half_life: float = 16.0
    exploration: float = 0.1
    cooldown: int = 1
    seed: int = 0
    request_id: str | None = None
    epoch: int | None = None

    required: ClassVar[tuple[str, ...]] = ("run_id", "policy_version", "count")

    def __post_init__(self) -> None:
        check_name("run_id", self.run_id)
        for name, low in (("policy_version", 0), ("count", 1), ("cooldown", 0), ("seed", 0)):
            _replace(self, name, check_int(name, getattr(self, name), low=low))
        if self.problem_ids is not None:
            _replace(self, "problem_ids", check_distinct_ids("problem_ids", self.problem_ids, most=MAX_POOL))
        if self.features is not None:
            if self.problem_ids is None:
                raise InvalidValue(
                    "features were sent without problem_ids; send the ids of their rows.", param="problem_ids"
                )
            _replace(self, "features", check_features("features", self.features, count=len(self.problem_ids)))
        _replace(self, "half_life", check_number("half_life", self.half_life, low=1e-6))
        _replace(self, "exploration", check_number("exploration", self.exploration, low=0.0, high=1.0))
        if self.request_id is not None:
            check_name("request_id", self.request_id)
        if self.epoch is not None:
            _replace(self, "epoch", check_int("epoch", self.epoch))

    @classmethod
    def from_json(cls, body: Any) -> Self:
        """A request from a decoded body."""
        return cls(**cls._values(body))


def _replace(message: object, name: str, value: object) -> None:
    object.__setattr__(message, name, value)


def _mapping(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise InvalidValue(f"the body is {shown(body)}; expected a JSON object.", param="body")
    return body
