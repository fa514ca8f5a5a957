"""`diverse` against a greedy search that computes every sum anew, and against the best of all orders."""

import itertools

import numpy as np
import pytest
from ranking_kit import rank, unit


def greedy(sketches, vector, ids):
    """Each pick maximises cos(sum of picks, v); a row without a signal counts as 0; equals by id."""
    rows = np.asarray(sketches, dtype=np.float64)
    vector = vector / np.linalg.norm(vector)
    left, total, order = set(range(len(rows))), np.zeros(rows.shape[1]), []
    while left:

        def gain(i, total=total):
            after = total + rows[i]
            length = np.linalg.norm(after)
            return float(after @ vector / length) if rows[i].any() and length > 1e-9 else 0.0

        gains = {i: gain(i) for i in left}
        best = max(gains.values())
        chosen = min((i for i in left if gains[i] >= best - 1e-12), key=lambda i: ids[i])
        left.remove(chosen)
        order.append(chosen)
        total = total + rows[chosen]
    return order


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_greedy_order(seed):
    rng = np.random.default_rng(seed)
    count, dim = int(rng.integers(2, 40)), int(rng.integers(2, 50))
    sketches = rng.standard_normal((count, dim)) * rng.lognormal(0, 1, (count, 1))
    sketches[rng.random(count) < 0.1] = 0
    vector = rng.standard_normal(dim)
    ids = [f"p{i}" for i in range(count)]
    scored = rank(sketches, "diverse", validation=unit(vector))
    assert scored.ids == [ids[i] for i in greedy(sketches, vector, ids)]
    assert scored.priorities == pytest.approx(np.arange(count, 0, -1) / count)


def test_exact_norms_are_the_lengths_it_sums():
    rng = np.random.default_rng(5)
    sketches, vector = rng.standard_normal((20, 30)), rng.standard_normal(30)
    norms = rng.lognormal(0, 1, 20)
    longer = sketches / np.linalg.norm(sketches, axis=1, keepdims=True) * norms[:, None]
    ids = [f"p{i}" for i in range(20)]
    scored = rank(sketches, "diverse", validation=unit(vector), norms=norms)
    assert scored.ids == [ids[i] for i in greedy(longer, vector, ids)]


def test_near_duplicates_are_not_picked_together():
    vector = np.array([1.0, 1.0, 0.0])
    twin, other = np.array([1.0, 0.3, 0.0]), np.array([0.1, 1.0, 0.0])
    sketches = np.array([twin, twin * 1.001, other])
    assert rank(sketches, "cosine", validation=unit(vector)).ids[2] == "p2"
    assert rank(sketches, "diverse", validation=unit(vector)).ids[1] == "p2"


@pytest.mark.parametrize("seed", range(4))
def test_the_first_picks_are_no_worse_than_half_of_the_best_set(seed):
    """Greedy is no optimum; this catches a search that goes the wrong way."""
    rng = np.random.default_rng(seed)
    sketches, vector = rng.standard_normal((8, 6)), rng.standard_normal(6)

    def value(chosen):
        total = sketches[list(chosen)].sum(axis=0)
        return total @ vector / np.linalg.norm(total) / np.linalg.norm(vector)

    best = max(value(c) for c in itertools.combinations(range(8), 3))
    scored = rank(sketches, "diverse", validation=unit(vector))
    assert value(int(i.removeprefix("p")) for i in scored.ids[:3]) >= best / 2


def test_no_signal_stands_between_what_helps_and_what_hurts():
    vector = np.array([1.0, 0.0, 0.0])
    sketches = np.array([[0.0, 0.0, 0.0], [-50.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.9, 0.1, 0.0]])
    assert rank(sketches, "diverse", validation=unit(vector)).ids == ["p2", "p3", "p0", "p1"]


def test_rows_left_out_do_not_shift_the_others():
    rng = np.random.default_rng(9)
    sketches, vector = rng.standard_normal((12, 16)), rng.standard_normal(16)
    broken = sketches.copy()
    broken[[0, 5]] = np.nan
    rest = [i for i in range(12) if i not in (0, 5)]
    whole = rank(sketches[rest], "diverse", validation=unit(vector), ids=[f"p{i}" for i in rest])
    assert rank(broken, "diverse", validation=unit(vector)).ids == whole.ids


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_any_magnitude(factor):
    rng = np.random.default_rng(3)
    sketches, vector = rng.standard_normal((10, 16)), rng.standard_normal(16)
    wanted = rank(sketches, "diverse", validation=unit(vector)).ids
    assert rank(sketches * factor, "diverse", validation=unit(vector)).ids == wanted


def test_everything_without_a_signal_goes_by_id():
    scored = rank(np.zeros((5, 8)), "diverse", validation=unit(np.ones(8)), ids=list("ecabd"))
    assert scored.ids == list("abcde")
