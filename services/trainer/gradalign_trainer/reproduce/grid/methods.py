"""What is compared: each method is a name and the settings of `TrainConfig` that make it.

A method of your own is one more entry; everything else (grid, tables, pictures) goes by this list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["BASELINES", "METHODS", "ON_TRUSTED_ONLY", "PAPER_BASELINES", "TRUSTED", "TUNED_ON", "Method"]

TRUSTED = 48


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the tables.

    Attributes:
        note: what it does.
        changes: settings of a run that differ from the grid's.
        rounds: how many its runs have where all three budgets are read, enough for each on a machine like the one
            that docs/reproduction.md tells of.
        evaluate_every: rounds between evaluations; divides the rounds of equal updates.
        pool: problems of the regime's pool that there are to choose from, its first ones; None for all 4,096.
    """

    note: str
    changes: Mapping[str, Any]
    rounds: int = 56
    evaluate_every: int = 3
    pool: int | None = None


def _scored(strategy: str, note: str, *, rounds: int = 56, **more: Any) -> Method:
    return Method(note, {"strategy": strategy, **more}, rounds)


_WEIGHTED = {
    "mode": "weight",
    "batch_problems": 64,
    "updates_per_round": 1,
    "validation_subset": 16,
    "validation_rollouts": 8,
    "validation_decay": 0.7,
}
_PROPOSED = {**_WEIGHTED, "proposals": True, "proposal_pool": 512, "proposal_cooldown": 2}
_FORWARD = {"alignment": "forward"}
_UNCHOSEN = {"strategy": "random", "select_fraction": 1.0}
_EVERYTHING = {**_UNCHOSEN, "batch_problems": 64}

METHODS: Mapping[str, Method] = {
    "random": Method("16 problems an update, at random", {"strategy": "random"}, 260, 15),
    "full": Method("GRPO on all 128 that others choose from, 64 an update", _EVERYTHING, 85, 5),
    "posterior": Method(
        "16 of all 4,096 an update, by a draw from what is believed of their success rates: MoPPS",
        {"strategy": "posterior", "pool_size": 4096, "select_fraction": 16 / 4096},
        260,
        15,
    ),
    "posterior-256": Method(
        "the same out of 256, so that a problem comes again before its belief is old",
        {"strategy": "posterior", "pool_size": 256, "select_fraction": 16 / 256},
        260,
        15,
        pool=256,
    ),
    "accgreedy": _scored("accgreedy", "pass rate nearest to one half"),
    "accuracy_band": _scored("accuracy_band", "at random among pass rates from .2 to .8"),
    "learnalign": _scored("learnalign", "cosine with the candidates' own pooled gradient"),
    "norm": _scored("norm", "largest gradient"),
    "dot": _scored("dot", "product with the unit validation gradient", rounds=33),
    "cosine": _scored("cosine", "cosine with the validation gradient: the paper's method", rounds=33),
    "cosine_accuracy": _scored("cosine_accuracy", "cosine times 4p(1-p)", rounds=33),
    "diverse": _scored("diverse", "the set whose sum is best aligned, greedily", rounds=33),
    "in-batch": Method("64 problems an update, each group by its weight: docs/inbatch.md", _PROPOSED, 100, 6),
    "in-batch+val": Method(
        "the same, and the fresh validation gradients", {**_PROPOSED, "train_on_validation": True}, 100, 6
    ),
    "weights": Method("64 problems at random, each group by its weight", _WEIGHTED, 100, 6),
    "full+val": Method(
        "full, and all 48 trusted problems in each update", {**_EVERYTHING, "batch_validation": TRUSTED}, 50, 5
    ),
    "validation-only": Method("16 of the trusted problems an update", _UNCHOSEN, 260, 15),
    "validation-all": Method("all 48 trusted problems an update", {**_UNCHOSEN, "batch_problems": TRUSTED}, 110, 5),
    "dapo": Method(
        "64 groups with a signal an update, drawn until full",
        {"strategy": "random", "mode": "dynamic", "batch_problems": 64},
        72,
    ),
    "dtv": Method(
        "full, without rollouts that contradict the others of their batch: DTV's leave-one-out",
        {**_EVERYTHING, "mode": "filter"},
        75,
        5,
    ),
    "oracle": Method("16 good problems an update: a filter that knows them", {"strategy": "oracle"}, 260, 15),
    "oracle-64": Method("64 good problems an update", {**_EVERYTHING, "strategy": "oracle"}, 85, 5),
    "head": _scored("cosine", "cosine of the head's gradients alone: LESSER", rounds=46, alignment="head"),
    "cosine-exact": _scored("cosine", "cosine without projection", rounds=33, exact_alignments=True),
    "forward": _scored("dot", "product from forward passes alone: docs/forward.md", rounds=46, **_FORWARD),
    "forward-head": _scored(
        "cosine", "product over the norm of the head's gradient", rounds=46, norms="head", **_FORWARD
    ),
    "shrunken": _scored("shrunken", "the same, shrunken by what rollouts scatter", rounds=46, **_FORWARD),
    "forward-weights": Method("in-batch by forward passes", {**_PROPOSED, **_FORWARD}, 100, 6),
    "rollout-weights": Method(
        "the same, each rollout by its weight", {**_PROPOSED, **_FORWARD, "rollout_weights": True}, 100, 6
    ),
}
"""By the name of the row."""

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

TUNED_ON: Mapping[str, Sequence[int]] = dict.fromkeys(
    ("in-batch", "in-batch+val", "weights", "forward-weights", "rollout-weights"), (0,)
)
"""Seeds that a method's settings were chosen on: they stand in the tables, and are left out of the comparisons that
head them."""
