"""Every strategy against its row of the reference's table of methods, computed here in numpy."""

import numpy as np
import pytest
from ranking_kit import by_id, cosines, rank, unit

from gradalign import InvalidValue, ValidationMissing
from gradalign.wire.messages import STRATEGIES as WIRE_STRATEGIES
from gradalign_scorer.ranking.strategies import STRATEGIES

RNG = np.random.default_rng(0)
SKETCHES = RNG.standard_normal((40, 64)) * RNG.lognormal(0, 1, (40, 1))
VECTOR = RNG.standard_normal(64)
RATES = RNG.uniform(0, 1, 40)
OUTCOMES = {"pass_rates": RATES, "rollouts": [8] * 40}
TOKENS = RNG.integers(1, 900, 40)


def learnalign():
    return cosines(SKETCHES, (TOKENS[:, None] * SKETCHES).sum(axis=0))


REFERENCE = {
    "cosine": lambda: cosines(SKETCHES, VECTOR),
    "dot": lambda: SKETCHES @ (VECTOR / np.linalg.norm(VECTOR)),
    "anti": lambda: -cosines(SKETCHES, VECTOR),
    "norm": lambda: np.linalg.norm(SKETCHES, axis=1),
    "learnalign": learnalign,
    "accgreedy": lambda: -abs(RATES - 0.5),
    "cosine_accuracy": lambda: cosines(SKETCHES, VECTOR) * 4 * RATES * (1 - RATES),
}


def test_the_wire_names_every_strategy():
    assert tuple(STRATEGIES) == WIRE_STRATEGIES
    assert all(rule.name == name for name, rule in STRATEGIES.items())


@pytest.mark.parametrize("name", REFERENCE)
def test_priorities_are_the_references(name):
    wanted = REFERENCE[name]()
    scored = rank(SKETCHES, name, validation=unit(VECTOR), pass_rates=RATES, tokens=TOKENS)
    priorities = by_id(scored)
    assert [priorities[f"p{i}"] for i in range(40)] == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert scored.ids == [f"p{i}" for i in np.argsort(-wanted)]


@pytest.mark.parametrize("name", REFERENCE)
def test_a_problem_without_a_signal_is_0_and_above_negatives(name):
    sketches = np.vstack([SKETCHES, np.zeros((1, 64))])
    rates, tokens = np.append(RATES, 0.9), np.append(TOKENS, 5)
    scored = rank(sketches, name, validation=unit(VECTOR), pass_rates=rates, tokens=tokens)
    priorities = by_id(scored)
    if name == "accgreedy":
        assert priorities["p40"] == pytest.approx(-0.4)
        return
    assert priorities["p40"] == 0.0
    assert not np.signbit(priorities["p40"])
    place = scored.ids.index("p40")
    assert (scored.priorities[:place] >= 0).all()
    assert (scored.priorities[place + 1 :] <= 0).all()
    assert not scored.signal[place]
    assert scored.weights[place] == 0.0


@pytest.mark.parametrize("name", ["cosine", "dot", "anti", "norm", "learnalign", "cosine_accuracy", "accgreedy"])
def test_ties_go_by_id(name):
    sketches = np.tile(SKETCHES[0], (40, 1))
    ids = [f"{i:x}" for i in RNG.permutation(40)]
    scored = rank(sketches, name, validation=unit(VECTOR), ids=ids, pass_rates=np.full(40, 0.3), tokens=[7] * 40)
    assert len(set(scored.priorities.tolist())) == 1
    assert scored.ids == sorted(ids)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "shrunken"])
def test_columns_stay_together(name):
    """Whatever the ranking sorts by, each problem keeps its own alignment, norm, weight and pass rate."""
    scored = rank(SKETCHES, name, validation=unit(VECTOR), **OUTCOMES)
    assert (np.diff(scored.priorities) <= 0).all()
    places = [int(i.removeprefix("p")) for i in scored.ids]
    assert sorted(places) == list(range(40))
    wanted = cosines(SKETCHES, VECTOR)[places]
    assert scored.alignments == pytest.approx(wanted, abs=1e-6)
    assert scored.norms == pytest.approx(np.linalg.norm(SKETCHES, axis=1)[places], rel=1e-6)
    assert scored.pass_rates.tolist() == RATES[places].tolist()
    spread = np.std(cosines(SKETCHES, VECTOR))
    assert scored.weights == pytest.approx(np.clip(0.25 + wanted / (2 * spread), 0, 1), abs=1e-5)


@pytest.mark.parametrize("name", [n for n, rule in STRATEGIES.items() if rule.needs_validation])
def test_without_a_validation_gradient_the_message_names_what_would_do(name):
    with pytest.raises(ValidationMissing) as caught:
        rank(SKETCHES, name, pass_rates=RATES)
    assert caught.value.param == "strategy"
    for other, rule in STRATEGIES.items():
        # Within the parentheses: a name may be part of another's.
        listed = str(caught.value).partition("needs none (")[2].partition(")")[0].split(", ")
        assert (other in listed) != rule.needs_validation


@pytest.mark.parametrize("name", [n for n, rule in STRATEGIES.items() if not rule.needs_validation])
def test_the_others_do_without(name):
    scored = rank(SKETCHES, name, **OUTCOMES)
    assert scored.alignments is None
    assert scored.reliability is None
    assert scored.weights.tolist() == [1.0] * 40


@pytest.mark.parametrize("name", ["accgreedy", "accuracy_band", "cosine_accuracy", "posterior"])
def test_accuracy_strategies_ask_for_pass_rates(name):
    with pytest.raises(InvalidValue, match="no pass_rates were sent") as caught:
        rank(SKETCHES, name, validation=unit(VECTOR))
    assert caught.value.param == "pass_rates"


def test_posterior_asks_for_group_sizes():
    with pytest.raises(InvalidValue, match="no rollouts were sent") as caught:
        rank(SKETCHES, "posterior", pass_rates=RATES)
    assert caught.value.param == "rollouts"


def test_cosine_accuracy_gives_nothing_for_what_is_foregone():
    rates = [0.0, 1.0, 0.5]
    priorities = by_id(rank(np.tile(VECTOR, (3, 1)), "cosine_accuracy", validation=unit(VECTOR), pass_rates=rates))
    assert priorities == {"p0": 0.0, "p1": 0.0, "p2": pytest.approx(1.0)}


def test_learnalign_without_tokens_pools_with_equal_weights():
    priorities = by_id(rank(SKETCHES, "learnalign"))
    wanted = cosines(SKETCHES, SKETCHES.sum(axis=0))
    assert [priorities[f"p{i}"] for i in range(40)] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    "sketches",
    [
        np.vstack([VECTOR, -VECTOR]),
        [[0.1, 0.2], [0.2, 0.4], [-0.3, -0.6]],
        # The weights scale these by 1/sqrt(45), so that the sum is no exact 0.
        [[1, 5], [2, 1], [3, -3], [-6, -3]],
        np.zeros((2, 5)),
    ],
)
def test_learnalign_of_candidates_that_cancel_is_0(sketches):
    scored = rank(sketches, "learnalign")
    assert scored.priorities.tolist() == [0.0] * len(sketches)
    assert scored.ids == [f"p{i}" for i in range(len(sketches))]
