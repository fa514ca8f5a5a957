"""The seeded strategies: uniform, the same for the same request, different for another round or run."""

import numpy as np
import pytest
from ranking_kit import by_id, rank

COUNT = 4000


def draw(strategy="random", ids=None, **request):
    ids = [f"problem-{i}" for i in range(COUNT)] if ids is None else ids
    request.setdefault("pass_rates", [0.5] * len(ids))
    return by_id(rank(np.ones((len(ids), 1)), strategy, ids=ids, **request))


def chi_square(counts):
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("strategy", ["random", "accuracy_band"])
@pytest.mark.parametrize("version", [0, 1, 17])
def test_uniform(strategy, version):
    values = np.array(list(draw(strategy, policy_version=version).values()))
    assert ((values >= 0) & (values < 1)).all()
    counts = np.histogram(values, bins=50, range=(0, 1))[0]
    # 99.9% of uniform draws stay below 85 with 49 degrees of freedom.
    assert chi_square(counts) < 85


def test_every_problem_is_chosen_equally_often_over_rounds():
    ids = [f"p{i}" for i in range(30)]
    counts = np.zeros(30)
    for version in range(400):
        values = draw(ids=ids, policy_version=version)
        for chosen in sorted(ids, key=lambda i: -values[i])[:10]:
            counts[ids.index(chosen)] += 1
    # 10 of 30 drawn without replacement: the variance is 2/3 of a multinomial's; 58 is the 99.9% point of 29 degrees.
    assert chi_square(counts) < 58


def test_rounds_runs_and_strategies_are_independent():
    base = draw()
    others = [
        draw(policy_version=1),
        draw(run_id="other"),
        draw("accuracy_band"),
        draw(run_id="run0"),
    ]
    for other in others:
        pairs = [(value, other[i]) for i, value in base.items()]
        assert abs(np.corrcoef(np.transpose(pairs))[0, 1]) < 4 / np.sqrt(COUNT)


def test_the_same_whatever_else_is_in_the_request():
    ids = [f"problem-{i}" for i in range(COUNT)]
    whole = draw()
    assert draw(ids=ids[::-1]) == whole
    assert draw(ids=ids[10:20]) == {i: whole[i] for i in ids[10:20]}


def test_the_band_comes_first_with_its_bounds_in_it():
    rates = [0.0, 0.1999, 0.2, 0.5, 0.8, 0.8001, 1.0]
    ids = [f"{rate}/{i}" for rate in rates for i in range(50)]
    values = draw("accuracy_band", ids=ids, pass_rates=[rate for rate in rates for _ in range(50)])
    for problem_id, value in values.items():
        inside = 0.2 <= float(problem_id.partition("/")[0]) <= 0.8
        assert (0 <= value < 1) if inside else (-1 <= value < 0)


def test_outside_the_band_too_the_order_is_random():
    values = np.array(list(draw("accuracy_band", pass_rates=[0.0] * COUNT).values()))
    assert chi_square(np.histogram(values, bins=50, range=(-1, 0))[0]) < 85
