"""`clamp(0.25 + s/(2 sd), 0, 1)`: the weights for training on every group at once."""

import numpy as np
import pytest

from gradalign_scorer.ranking.weighting import DISCOUNT, PRIOR_VARIANCE, Spread, group_weights, quality_weights

RNG = np.random.default_rng(0)
ALIGNMENTS = RNG.normal(0.02, 0.1, 200)


def weights(alignments, *, signal=None, sums=0.0, counts=0.0, spread=None):
    shape = np.shape(alignments)
    signal = np.ones(shape, dtype=bool) if signal is None else signal
    return group_weights(
        alignments,
        signal,
        evidence_sum=np.broadcast_to(sums, shape),
        evidence_weight=np.broadcast_to(counts, shape),
        spread=spread,
    )


def test_the_formula():
    wanted = np.clip(0.25 + ALIGNMENTS / (2 * 0.1), 0, 1)
    assert weights(ALIGNMENTS, spread=0.1) == pytest.approx(wanted)
    assert 0 < (wanted == 0).sum() < (wanted < 1).sum() < 200


@pytest.mark.parametrize(("deviations", "wanted"), [(-9, 0), (-0.5, 0), (-0.25, 0.125), (0, 0.25), (1.5, 1), (9, 1)])
def test_where_it_bends(deviations, wanted):
    assert weights(np.array([deviations * 0.07]), spread=0.07) == pytest.approx([wanted])


def test_the_spread_is_the_requests_own_where_the_run_has_none():
    signal = RNG.random(200) < 0.5
    # What has no signal has no alignment either: it does not narrow the spread.
    result = weights(np.where(signal, ALIGNMENTS, 0.0), signal=signal)
    deviation = np.std(ALIGNMENTS[signal])
    assert result[signal] == pytest.approx(np.clip(0.25 + ALIGNMENTS[signal] / (2 * deviation), 0, 1))
    assert not result[~signal].any()
    assert weights(ALIGNMENTS, spread=0.0).tolist() == weights(ALIGNMENTS).tolist()


def test_evidence_is_averaged_in():
    sums, counts = RNG.normal(0, 0.3, 200), RNG.uniform(0, 5, 200)
    pooled = (ALIGNMENTS + sums) / (1 + counts)
    result = weights(ALIGNMENTS, sums=sums, counts=counts, spread=0.2)
    assert result == pytest.approx(np.clip(0.25 + pooled / 0.4, 0, 1))


def test_evidence_gives_no_weight_to_a_group_without_a_signal():
    result = weights(np.zeros(3), signal=np.array([False, True, False]), sums=5.0, counts=5.0, spread=0.1)
    assert result.tolist() == [0.0, 1.0, 0.0]


def test_without_a_validation_gradient_every_group_with_a_signal_counts_in_full():
    signal = np.array([True, False, True])
    zeros = np.zeros(3)
    result = group_weights(None, signal, evidence_sum=zeros, evidence_weight=zeros, spread=0.1)
    assert result.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("alignment", "wanted"), [(0.3, 1.0), (-0.3, 0.0), (0.0, 0.25)])
@pytest.mark.parametrize("count", [1, 5])
def test_without_any_spread_the_sign_decides(alignment, wanted, count):
    assert weights(np.full(count, alignment)).tolist() == [wanted] * count


def test_no_group_at_all():
    assert weights(np.zeros(0)).tolist() == []
    assert weights(np.zeros(2), signal=np.zeros(2, dtype=bool)).tolist() == [0.0, 0.0]


def test_always_in_0_to_1():
    extreme = np.array([-1.0, 1.0, 1e-300, -1e-300, 0.0])
    for spread in (None, 1e-300, 1e-12, 1e-6, 1.0, 1e300):
        result = weights(extreme, spread=spread, sums=1e-3, counts=1e6)
        assert ((result >= 0) & (result <= 1)).all()


def quality(alignments, **changes):
    count = len(alignments)
    fields = {
        "strength": 0.3, "evidence_sum": np.zeros(count), "evidence_weight": np.zeros(count), "predicted": np.zeros(count),
        "spread": 0.25,
    }  # fmt: skip
    given = {**fields, **{name: np.array(v) if isinstance(v, list) else v for name, v in changes.items()}}
    return quality_weights(np.array(alignments), np.ones(count, dtype=bool), **given)


class TestQuality:
    def test_it_is_the_posterior_mean(self):
        """Of q with prior N(predicted, PRIOR_VARIANCE), seen as strength q + noise of the run's spread."""
        earlier = [(0.5, 0.2), (0.1, -0.3)]  # strength and alignment
        sums, weights = sum(u * a for u, a in earlier), sum(u * u for u, _ in earlier)
        found = quality([0.1], evidence_sum=[sums], evidence_weight=[weights], predicted=[0.4])
        design = np.array([0.3, 0.5, 0.1])
        seen = np.array([0.1, 0.2, -0.3])
        precision = 1 / PRIOR_VARIANCE + design @ design / 0.25**2
        mean = (0.4 / PRIOR_VARIANCE + design @ seen / 0.25**2) / precision
        assert found == pytest.approx([0.25 + 0.75 * mean])

    def test_what_is_unknown_keeps_a_quarter_and_no_signal_nothing(self):
        assert quality([0.0]).tolist() == [0.25]
        none = np.zeros(1, dtype=bool)
        zeros = np.zeros(1)
        assert quality_weights(
            np.array([0.5]), none, strength=0.3, evidence_sum=zeros, evidence_weight=zeros, predicted=zeros, spread=0.2
        ).tolist() == [0.0]  # fmt: skip

    def test_a_validation_gradient_that_says_nothing_changes_nothing(self):
        known = {"evidence_sum": [0.2, -0.2], "evidence_weight": [0.2, 0.2]}
        assert quality([-0.5, 0.5], strength=0.0, **known) == pytest.approx(quality([0.5, -0.5], strength=0.0, **known))
        good, bad = quality([-0.5, 0.5], strength=0.02, **known)
        assert good > 0.6 > 0.05 > bad

    def test_weights_stay_within_bounds(self):
        assert quality([0.5, -0.5], spread=0.05).tolist() == [1.0, 0.0]
        assert quality([0.0, 0.0], spread=None).tolist() == [0.25, 0.25]


class TestSpread:
    def test_is_that_of_all_alignments_with_older_requests_discounted(self):
        first, second = RNG.standard_normal(7), 2 + RNG.standard_normal(5)
        spread = Spread.of(second).behind(Spread.of(first))
        weights, values = np.repeat([DISCOUNT, 1.0], [7, 5]), np.concatenate([first, second])
        mean = np.average(values, weights=weights)
        assert spread.mean == pytest.approx(mean)
        assert spread.deviation == pytest.approx(np.average((values - mean) ** 2, weights=weights) ** 0.5)

    def test_a_request_without_alignments_ages_nothing(self):
        known = Spread.of(np.array([0.1, 0.5]))
        assert Spread.of(np.zeros(0)).behind(known) == known

    def test_nothing_has_none(self):
        assert (Spread().mean, Spread().deviation) == (0.0, 0.0)
