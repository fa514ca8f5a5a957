"""What is compared: each method is a name and the settings of `TrainConfig` that make it.

A method of your own is one more entry; everything else (grid, tables, pictures) goes by this list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradalign_trainer.world import Scale

__all__ = ["BASELINES", "METHODS", "ON_TRUSTED_ONLY", "PAPER_BASELINES", "TUNED_ON", "Method", "methods_at"]


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the tables.

    Attributes:
        note: what it does.
        changes: settings of a run that differ from the grid's.
        rounds: how many its runs have where all three budgets are read, enough for each on a machine like the one
            that docs/reproduction.md tells of.
        evaluate_every: rounds between evaluations; divides the rounds of equal updates.
        pool: problems of the regime's pool that there are to choose from, its first ones; None for all.
    """

    note: str
    changes: Mapping[str, Any]
    rounds: int = 56
    evaluate_every: int = 3
    pool: int | None = None


def methods_at(scale: Scale) -> Mapping[str, Method]:
    """The methods by the names of their rows, as a world of this scale has them.

    Names and notes tell the numbers of the arithmetic world.
    """
    makers = (_unchosen, _choosing, _weighing, _trusting, _filtering, _aligned_otherwise)
    return {name: _paced(method, scale) for make in makers for name, method in make(scale).items()}


def _paced(method: Method, scale: Scale) -> Method:
    """Rounds and evaluations for as many updates as the scale has."""
    if scale.evaluations is None:
        return method
    per_round = method.changes.get("updates_per_round", scale.updates_per_round)
    rounds = scale.updates // per_round
    longer = max(rounds, round(method.rounds * scale.updates / Scale().updates))
    return replace(method, rounds=longer, evaluate_every=max(1, rounds // scale.evaluations))


def _scored(strategy: str, note: str, *, rounds: int = 56, **more: Any) -> Method:
    return Method(note, {"strategy": strategy, **more}, rounds)


_FORWARD = {"alignment": "forward"}
_UNCHOSEN = {"strategy": "random", "select_fraction": 1.0}


def _everything(scale: Scale) -> dict[str, Any]:
    return {**_UNCHOSEN, "batch_problems": scale.large_batch}


def _proposed(scale: Scale) -> dict[str, Any]:
    return {**_weighted(scale), "proposals": True, "proposal_pool": scale.proposed_from, "proposal_cooldown": 2}


def _weighted(scale: Scale) -> dict[str, Any]:
    return {
        "mode": "weight",
        "batch_problems": scale.large_batch,
        "updates_per_round": 1,
        "validation_subset": scale.trusted_turn,
        "validation_rollouts": 8,
        "validation_decay": 0.7,
    }


def _posterior(scale: Scale, pool: int, note: str, limit: int | None = None) -> Method:
    changes = {"strategy": "posterior", "pool_size": pool, "select_fraction": scale.batch / pool}
    return Method(note, changes, 260, 15, pool=limit)


def _unchosen(scale: Scale) -> dict[str, Method]:
    return {
        "random": Method("16 problems an update, at random", {"strategy": "random"}, 260, 15),
        "full": Method("GRPO on all 128 that others choose from, 64 an update", _everything(scale), 85, 5),
        "posterior": _posterior(
            scale,
            scale.pool,
            "16 of all 4,096 an update, by a draw from what is believed of their success rates: MoPPS",
        ),
        "posterior-256": _posterior(
            scale,
            scale.again,
            "the same out of 256, so that a problem comes again before its belief is old",
            scale.again,
        ),
    }


def _choosing(scale: Scale) -> dict[str, Method]:  # noqa: ARG001
    return {
        "accgreedy": _scored("accgreedy", "pass rate nearest to one half"),
        "accuracy_band": _scored("accuracy_band", "at random among pass rates from .2 to .8"),
        "learnalign": _scored("learnalign", "cosine with the candidates' own pooled gradient"),
        "norm": _scored("norm", "largest gradient"),
        "dot": _scored("dot", "product with the unit validation gradient", rounds=33),
        "cosine": _scored("cosine", "cosine with the validation gradient: the paper's method", rounds=33),
        "cosine_accuracy": _scored("cosine_accuracy", "cosine times 4p(1-p)", rounds=33),
        "diverse": _scored("diverse", "the set whose sum is best aligned, greedily", rounds=33),
    }


def _weighing(scale: Scale) -> dict[str, Method]:
    proposed = _proposed(scale)
    return {
        "in-batch": Method("64 problems an update, each group by its weight: docs/inbatch.md", proposed, 100, 6),
        "in-batch+val": Method(
            "the same, and the fresh validation gradients", {**proposed, "train_on_validation": True}, 100, 6
        ),
        "weights": Method("64 problems at random, each group by its weight", _weighted(scale), 100, 6),
    }


def _trusting(scale: Scale) -> dict[str, Method]:
    return {
        "full+val": Method(
            "full, and all 48 trusted problems in each update",
            {**_everything(scale), "batch_validation": scale.trusted},
            50,
            5,
        ),
        "validation-only": Method("16 of the trusted problems an update", _UNCHOSEN, 260, 15),
        "validation-all": Method(
            "all 48 trusted problems an update", {**_UNCHOSEN, "batch_problems": scale.trusted}, 110, 5
        ),
    }


def _filtering(scale: Scale) -> dict[str, Method]:
    everything = _everything(scale)
    return {
        "dapo": Method(
            "64 groups with a signal an update, drawn until full",
            {"strategy": "random", "mode": "dynamic", "batch_problems": scale.large_batch},
            72,
        ),
        "dtv": Method(
            "full, without rollouts that contradict the others of their batch: DTV's leave-one-out",
            {**everything, "mode": "filter"},
            75,
            5,
        ),
        "oracle": Method("16 good problems an update: a filter that knows them", {"strategy": "oracle"}, 260, 15),
        "oracle-64": Method("64 good problems an update", {**everything, "strategy": "oracle"}, 85, 5),
    }


def _aligned_otherwise(scale: Scale) -> dict[str, Method]:
    proposed = _proposed(scale)
    return {
        "head": _scored("cosine", "cosine of the head's gradients alone: LESSER", rounds=46, alignment="head"),
        "cosine-exact": _scored("cosine", "cosine without projection", rounds=33, exact_alignments=True),
        "forward": _scored("dot", "product from forward passes alone: docs/forward.md", rounds=46, **_FORWARD),
        "forward-head": _scored(
            "cosine", "product over the norm of the head's gradient", rounds=46, norms="head", **_FORWARD
        ),
        "shrunken": _scored("shrunken", "the same, shrunken by what rollouts scatter", rounds=46, **_FORWARD),
        "forward-weights": Method("in-batch by forward passes", {**proposed, **_FORWARD}, 100, 6),
        "forward-weights+val": Method(
            "the same, and the fresh validation gradients",
            {**proposed, **_FORWARD, "train_on_validation": True},
            100,
            6,
        ),
        "rollout-weights": Method(
            "forward-weights, each rollout by its weight", {**proposed, **_FORWARD, "rollout_weights": True}, 100, 6
        ),
    }


METHODS: Mapping[str, Method] = methods_at(Scale())
"""Of the arithmetic world, by the name of the row."""

ON_TRUSTED_ONLY = ("validation-only", "validation-all")
"""Methods whose pool is the trusted problems, so that their runs are the same in all regimes."""

PAPER_BASELINES = ("random", "accgreedy", "learnalign")
"""The paper compares with these, the modes of its reference implementation beside its own; its plain GRPO takes as
many problems an update as its selections, which is `random` here. None of them sees the trusted problems."""

BASELINES = (
    *PAPER_BASELINES,
    "posterior",
    "posterior-256",
    "full",
    "accuracy_band",
    "norm",
    "full+val",
    *ON_TRUSTED_ONLY,
    "dapo",
    "dtv",
)
"""And what a sceptic adds."""

TUNED_ON: Mapping[str, Mapping[str, Sequence[int]]] = {
    "arithmetic": dict.fromkeys(
        ("in-batch", "in-batch+val", "weights", "forward-weights", "forward-weights+val", "rollout-weights"), (0,)
    )
}
"""World -> method -> the seeds that the method's settings were chosen on: they stand in the tables, and are left out of
the comparisons that head them."""
