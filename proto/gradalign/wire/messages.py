"""The requests of the wire. Who makes one: a trainer, through a client. Who reads one: the scorer.

Values are checked where a message is made, so a client refuses what the scorer would, with the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from gradalign.errors import InvalidValue
from gradalign.wire.checks import (
    LARGEST_PRODUCT,
    check_distinct_ids,
    check_features,
    check_flag,
    check_int,
    check_length,
    check_name,
    check_number,
    check_one_of,
)
from gradalign.wire.rows import MAX_PROBLEMS, NORMS_KINDS, Header, RowsRequest, replace_value

__all__ = [
    "AGGREGATIONS",
    "DISCOUNT",
    "GRADIENT_STRATEGIES",
    "MAX_POOL",
    "MAX_PROBLEMS",
    "NORMS_KINDS",
    "PASS_RATE_STRATEGIES",
    "SELECT_STRATEGIES",
    "SKETCH_STRATEGIES",
    "STRATEGIES",
    "RefreshRequest",
    "ScoreRequest",
    "SelectRequest",
]

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
    "shrunken",
    "posterior",
)
SKETCH_STRATEGIES = tuple(name for name in STRATEGIES if name != "shrunken")
"""Those of a run of sketches, which tell nothing of single rollouts."""
GRADIENT_STRATEGIES = ("learnalign", "diverse", "norm")
"""Those that products alone do not do for: they compare candidates with one another, or need norms of gradients."""
PASS_RATE_STRATEGIES = ("accgreedy", "accuracy_band", "random", "posterior")
"""Those of a run of pass rates, which has no gradients."""
SELECT_STRATEGIES = ("posterior",)
"""What a /select may name in place of the stored priorities."""
DISCOUNT = 0.5
"""Of beliefs, where a request names none: that of the recipe for Countdown which the authors of MoPPS publish."""
AGGREGATIONS = ("pooled", "mean", "normalized")
MAX_POOL = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ScoreRequest(RowsRequest):
    """Rank candidate problems. A trainer sends it to `POST /score`; a `Ranking` comes back.

    Attributes:
        run_id: the training job.
        policy_version: which weights the gradients were taken at.
        projection: how the sketches were made. None: the request has no sketches.
        problem_ids: distinct ids; row i of the sketches, or group i of the products, is problem i.
        sketches: [problems, dim]. None: the request has products, or pass rates alone.
        products: of each rollout's share of its problem's gradient with the unit validation gradient of `products_version`:
            a list for each problem, of 1 to 4096 numbers, which add up to the problem's product. A problem with NaN or Inf
            among them is left out. None: the request has sketches, or pass rates alone.
        products_version: the validation version of `products`; must be the current one.
        norms: gradient norms: exact ones, before projection; with products of the kind `norms_kind`. None: the sketches' own
            norms are used; with products none are, and problems are ranked by their products.
        norms_kind: of `norms`, with products: `exact`, which makes alignments cosines, or `head`, norms of the gradient of
            the model's head alone. None: `exact`.
        rollouts: group size per problem; needed where a belief is kept.
        tokens: response tokens per problem.
        request_id: makes a retry exactly-once. None: a repeated request is applied again.
        epoch: fencing token; lower than one the run has seen is refused. None: not fenced.
        dots: exact products of each gradient with the unit validation gradient of `dots_version`.
        dots_version: the validation version of `dots`; must be the current one.
        pass_rates: mean reward of each group, in [0, 1]. None: strategies that need it are refused. A request with these and
            `rollouts` and neither sketches nor products is one of a run of pass rates, which takes no gradient.
        strategy: one of STRATEGIES, in a run of pass rates of PASS_RATE_STRATEGIES. None: the run's, which is the one last
            named, at first `cosine`, or `posterior` in a run of pass rates.
        select: mark the best n of this request as selected. None: mark none.
        features: what is known of each problem before it is tried, [problems, 1 to 64], each with a spread of about 1: the
            run learns to predict from them how good a problem is, for weights and for `/select`. One width in a run. None:
            nothing is learned or predicted, and weights come of alignments alone.
        rollout_weights: with products: whether the reply has a weight for each rollout too. None: it has not.
        shrink_weights: with products: whether weights come of alignments shrunken by their standard errors. None: of the
            alignments as they are.
        discount: in [0, 1]; keep a belief about each problem's success rate, a Beta distribution, in which earlier rollouts
            count this much once newer ones come. None: in a run of pass rates, and with the strategy `posterior`, DISCOUNT;
            else no belief is kept.
    """

    dots: list[float] | None = None
    dots_version: int | None = None
    pass_rates: list[float] | None = None
    strategy: str | None = None
    select: int | None = None
    features: list[list[float]] | None = None
    products_version: int | None = None
    rollout_weights: bool | None = None
    shrink_weights: bool | None = None
    discount: float | None = None

    only_sketches: ClassVar[tuple[str, ...]] = (*RowsRequest.only_sketches, "dots", "dots_version")
    only_products: ClassVar[tuple[str, ...]] = (
        *RowsRequest.only_products,
        "products_version",
        "rollout_weights",
        "shrink_weights",
    )
    only_gradients: ClassVar[tuple[str, ...]] = (*RowsRequest.only_gradients, "features")

    @property
    def kind(self) -> str:
        """`sketches`, `products` or `pass_rates`."""
        alone = self.sketches is None and self.projection is None and self.products is None
        return "pass_rates" if alone and self.pass_rates is not None else super().kind

    def __post_init__(self) -> None:
        for name in ("rollout_weights", "shrink_weights"):
            if getattr(self, name) is not None:
                # What is not asked for stays off the wire: it goes with any kind, and older scorers do not know the key.
                replace_value(self, name, check_flag(name, getattr(self, name)) or None)
        super().__post_init__()
        if self.products is not None:
            replace_value(self, "products_version", self._checked_version())
        self._check_per_problem("dots", low=-float("inf"))
        self._check_per_problem("pass_rates", low=0.0, high=1.0)
        if (self.dots is None) != (self.dots_version is None):
            raise InvalidValue("dots and dots_version go together; send both or neither.", param="dots_version")
        if self.dots_version is not None:
            replace_value(self, "dots_version", check_int("dots_version", self.dots_version))
        if self.strategy is not None:
            check_one_of("strategy", self.strategy, STRATEGIES)
        self._check_belief()
        if self.select is not None:
            replace_value(self, "select", check_int("select", self.select))
        if self.features is not None:
            replace_value(self, "features", check_features("features", self.features, count=len(self.problem_ids)))

    @property
    def belief_discount(self) -> float:
        """`discount`, or what a belief takes where none is named."""
        return DISCOUNT if self.discount is None else self.discount

    def _check_belief(self) -> None:
        if self.kind == "pass_rates" and self.strategy not in (None, *PASS_RATE_STRATEGIES):
            raise InvalidValue(
                f"strategy {self.strategy!r} ranks by gradients, and pass_rates alone were sent; use one of "
                f"{', '.join(PASS_RATE_STRATEGIES)}, or send sketches or products, in a run of their own.",
                param="strategy",
            )
        if self.discount is not None:
            replace_value(self, "discount", check_number("discount", self.discount, low=0.0, high=1.0))
        reasons = {
            "pass_rates were sent without sketches or products": self.kind == "pass_rates",
            "discount was sent": self.discount is not None,
            "strategy is 'posterior'": self.strategy == "posterior",
        }
        why = next((words for words, holds in reasons.items() if holds), None)
        missing = next((name for name in ("pass_rates", "rollouts") if getattr(self, name) is None), None)
        if why and missing:
            raise InvalidValue(
                f"{why}, and {missing} is missing; a belief about success rates needs the mean reward of each group "
                "(pass_rates) and how many rollouts it is of (rollouts). Send both.",
                param=missing,
            )

    def _checked_version(self) -> int:
        if self.products_version is None:
            raise InvalidValue(
                "products_version is missing; expected the validation_version that the reply to /refresh_validation named, "
                "of the gradient that the products were taken with.",
                param="products_version",
            )
        return check_int("products_version", self.products_version)


@dataclass(frozen=True, kw_only=True)
class RefreshRequest(RowsRequest):
    """Replace the run's validation gradient. Sent to `POST /refresh_validation`; a `RefreshReply` comes back.

    Attributes:
        aggregation: `pooled` (sum weighted by `tokens`; without them as `mean`; the reference's rule), `mean` (plain
            mean) or `normalized` (sum of unit sketches). None: `pooled`.
        decay: in [0, 1]; the validation gradient becomes `decay` times the run's plus the mean gradient of this request,
            both as long as they are. A run without one begins with the mean. None: replaced, as by 0.
        decay_version: the validation version whose gradient decays, for a sender that keeps a sum of its own; another
            current version is refused. None: whichever is current.
        products: of the validation problems' rollouts with the validation gradient that they make, of length 1: they add up
            to `lengths`. None: the request has sketches.
        lengths: with products: the norm of the validation gradient, a positive number or a list of one.
        carried: with products, where the trainer lets an earlier gradient decay into this one: the product of that earlier
            part with the unit gradient. Products and `carried` add up to `lengths`. None: 0.

    The other attributes are those of `ScoreRequest`. With products the trainer makes the validation gradient, and
    `aggregation` and `decay` are not taken.
    """

    aggregation: str | None = None
    decay: float | None = None
    decay_version: int | None = None
    lengths: float | list[float] | None = None
    carried: float | None = None

    only_sketches: ClassVar[tuple[str, ...]] = (*RowsRequest.only_sketches, "aggregation", "decay", "decay_version")
    only_products: ClassVar[tuple[str, ...]] = (*RowsRequest.only_products, "lengths", "carried")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.products is not None:
            replace_value(self, "lengths", self._checked_length())
        if self.carried is not None:
            bound = LARGEST_PRODUCT
            replace_value(self, "carried", check_number("carried", self.carried, low=-bound, high=bound))
        if self.aggregation is not None:
            check_one_of("aggregation", self.aggregation, AGGREGATIONS)
        if self.decay is not None:
            replace_value(self, "decay", check_number("decay", self.decay, low=0.0, high=1.0))
        if self.decay_version is not None:
            replace_value(self, "decay_version", check_int("decay_version", self.decay_version))
            if self.decay is None:
                raise InvalidValue(
                    "decay_version was sent without decay; send both, or neither.", param="decay_version"
                )

    def _checked_length(self) -> float:
        if self.lengths is None:
            raise InvalidValue(
                "lengths is missing; expected the norm of the validation gradient that the products were taken with, "
                "before it was divided by it.",
                param="lengths",
            )
        return check_length("lengths", self.lengths)


@dataclass(frozen=True, kw_only=True)
class SelectRequest(Header):
    """Pick problems from the run's stored priorities. A trainer sends it to `POST /select`; a `Selection` comes back.

    Attributes:
        run_id: the training job.
        policy_version: the current one; staleness is counted from it.
        count: how many problems to pick.
        problem_ids: pick among these only; ids never scored may be among them. None: all problems ever scored.
        features: of `problem_ids`, as in `ScoreRequest`: pick what is expected to be best from its scores and its features,
            under one Thompson draw, instead of by stored priorities.
        strategy: `posterior`: pick by success rates, under one Thompson draw from the beliefs that the run keeps of them.
            None: that where it is the strategy of the run's /score and no features are sent; else by stored priorities.
        half_life: staleness, in policy versions, at which a score has shrunk half-way to the run's mean, and the rollouts
            behind a belief count half. Not used with `features`.
        exploration: share of the picks, in [0, 1], that goes to problems never scored or longest unscored; with `features`
            or `posterior`, to problems drawn uniformly.
        cooldown: a problem picked less than this many policy versions ago is picked only when no other is left.
        seed: seed of the draws; the same request on the same state picks the same problems.
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
    strategy: str | None = None

    required: ClassVar[tuple[str, ...]] = ("run_id", "policy_version", "count")

    def __post_init__(self) -> None:
        check_name("run_id", self.run_id)
        for name, low in (("policy_version", 0), ("count", 1), ("cooldown", 0), ("seed", 0)):
            replace_value(self, name, check_int(name, getattr(self, name), low=low))
        if self.problem_ids is not None:
            replace_value(self, "problem_ids", check_distinct_ids("problem_ids", self.problem_ids, most=MAX_POOL))
        if self.features is not None:
            if self.problem_ids is None:
                raise InvalidValue(
                    "features were sent without problem_ids; send the ids of their rows.", param="problem_ids"
                )
            replace_value(self, "features", check_features("features", self.features, count=len(self.problem_ids)))
        if self.strategy is not None:
            check_one_of("strategy", self.strategy, SELECT_STRATEGIES)
            if self.features is not None:
                raise InvalidValue(
                    f"features were sent with strategy {self.strategy!r}, which picks by pass rates; send one of them.",
                    param="features",
                )
        replace_value(self, "half_life", check_number("half_life", self.half_life, low=1e-6))
        replace_value(self, "exploration", check_number("exploration", self.exploration, low=0.0, high=1.0))
        if self.request_id is not None:
            check_name("request_id", self.request_id)
        if self.epoch is not None:
            replace_value(self, "epoch", check_int("epoch", self.epoch))

    @classmethod
    def from_json(cls, body: Any) -> Self:
        """A request from a decoded body."""
        return cls(**cls._values(body))
