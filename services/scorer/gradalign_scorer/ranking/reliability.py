"""How far a ranking can be trusted: by the sketch's own error, and by that of the rollouts.

A problem's product is the sum of its rollouts', and the rollouts are draws of one policy: their spread tells the error of
the sum. That is the larger part of what is uncertain in a ranking, and sketches of whole groups cannot tell it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from gradalign import InvalidValue
from gradalign.wire.checks import LARGEST_PRODUCT
from gradalign.wire.projection import MAX_DIM

__all__ = [
    "RankingNoise",
    "Reliability",
    "RolloutProducts",
    "errors_over_norms",
    "ranking_noise",
    "reliability",
    "rollout_weights",
    "shrunken_alignments",
    "with_norms",
]

_LOW, _ENOUGH = 0.9, 0.95


@dataclass(frozen=True)
class Reliability:
    """An estimate and what to do about it.

    Attributes:
        value: expected Pearson correlation of sketched with exact alignments, in [0, 1].
        advised_dim: the smallest power of two at which it would reach 0.95, where `value` is below 0.9. None where it
            is not, where no allowed dim would do, and where the alignments spread no more than the sketch's own error.
    """

    value: float
    advised_dim: int | None = None


def reliability(alignments: npt.NDArray[np.float64], dim: int) -> Reliability | None:
    """`1/sqrt(1 + 1/(k sigma^2))` with `sigma^2 = var(alignments) - 1/k`.

    A sketched cosine is the exact one plus an error of variance about 1/k, so the observed variance is the sum of both.

    Args:
        alignments: sketched, of problems with a signal, [n].
        dim: number of buckets k.

    Returns:
        None for fewer than 3 alignments.
    """
    if len(alignments) < 3:
        return None
    sigma_square = float(np.var(alignments, ddof=1)) - 1 / dim
    if sigma_square <= 0:
        return Reliability(0.0)
    value = 1 / math.sqrt(1 + 1 / (dim * sigma_square))
    if value >= _LOW:
        return Reliability(value)
    needed = 1 / (sigma_square * (1 / _ENOUGH**2 - 1))
    if needed > MAX_DIM:
        return Reliability(value)
    return Reliability(value, 1 << math.ceil(math.log2(needed)))


Floats = npt.NDArray[np.float64]

_PRODUCT_TOLERANCE = 0.1
"""By which a product may exceed its norm: as much as a sum of products may be off without a warning."""
_ROUNDING = 1e-6
"""Of the sum of the absolute products of a problem's rollouts: what is left of them where they cancel in 32 bits."""
_LARGEST_QUOTIENT = 1e100
_FEWEST = 3
_PRIOR_ROLLOUTS = 3.0
"""Rollouts of the mean variance that each group's own is pooled with: a variance of eight numbers is off by a half."""
_LEAST_SIGNAL = 0.01
"""Of the mean squared error: alignments are never shrunken all the way, which would leave a ranking by name."""


@dataclass(frozen=True)
class RolloutProducts:
    """Products of the rollouts of n problems, and what they add up to.

    Attributes:
        flat: products of all rollouts, problem by problem; zeros for a problem that is not finite.
        counts: rollouts of each problem, [n].
        sums: the problems' products, [n].
        errors: standard errors of `sums`, [n]; NaN for a problem with one rollout.
        finite: [n]; False for a problem with NaN, Inf or more than 1e30 among its products.
        signal: [n]; whether any product of a finite problem is not zero.
    """

    flat: Floats
    counts: npt.NDArray[np.intp]
    sums: Floats
    errors: Floats
    finite: npt.NDArray[np.bool_]
    signal: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, products: Sequence[Sequence[float]]) -> RolloutProducts:
        """Of a request's products, at least one a problem.

        With n products x of mean m, the standard error of their sum is `sqrt(n/(n - 1) sum (x - m)^2)`: n times the variance
        of one, which is taken from the sample.
        """
        counts = np.array([len(group) for group in products], dtype=np.intp)
        flat = np.fromiter(chain.from_iterable(products), np.float64, count=int(counts.sum()))
        starts = np.cumsum(counts) - counts
        # Numbers of this size at most have finite sums and squares; a NaN is no less than anything.
        finite = np.logical_and.reduceat(np.abs(flat) <= LARGEST_PRODUCT, starts)
        flat = np.where(np.repeat(finite, counts), flat, 0.0)
        sums = np.add.reduceat(flat, starts)
        finite &= np.abs(sums) <= LARGEST_PRODUCT
        squares = np.add.reduceat(np.square(flat - np.repeat(sums / counts, counts)), starts)
        several = counts > 1
        variances = np.divide(counts * squares, counts - 1, out=np.full(len(counts), np.nan), where=several)
        signal = finite & np.logical_or.reduceat(flat != 0, starts)
        return cls(flat, counts, sums, np.sqrt(variances), finite, signal)

    def absolute_sums(self) -> Floats:
        """Of the absolute products of each problem's rollouts, [n]."""
        sums: Floats = np.add.reduceat(np.abs(self.flat), np.cumsum(self.counts) - self.counts)
        return sums


def with_norms(rollouts: RolloutProducts, norms: Floats, kind: str) -> Floats:
    """Quotients of the problems' products and their norms, [n]; 0 where the norm is 0, or the problem not finite.

    Rollouts that are the same text with different rewards have a gradient of 0, and products that cancel but for rounding.

    Args:
        rollouts: of n problems.
        norms: of them, [n].
        kind: `exact`: the quotients are cosines, in [-1, 1]; `head`: they may be beyond that.

    Raises:
        InvalidValue: a product is longer than its exact norm, or a norm is zero and its product is not.
    """
    cancelled = (norms == 0) & (np.abs(rollouts.sums) <= _ROUNDING * rollouts.absolute_sums())
    sums = np.where(rollouts.finite & ~cancelled, rollouts.sums, 0.0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        quotient: Floats = np.where(sums == 0, 0.0, sums / norms)
    worst = int(np.argmax(np.abs(quotient)))
    most = 1 + _PRODUCT_TOLERANCE if kind == "exact" else LARGEST_PRODUCT
    if abs(quotient[worst]) > most:
        wanted = (
            "|product| <= norm, as it is for a product with a vector of length 1"
            if kind == "exact"
            else "a norm above 0"
        )
        raise InvalidValue(
            f"products[{worst}] add up to {sums[worst]:g} and norms[{worst}] is {norms[worst]:g}; expected {wanted}. Take "
            "both from the same gradient, with the validation gradient divided by its norm, or leave norms out.",
            param="norms",
        )
    return np.clip(quotient, -1.0, 1.0) if kind == "exact" else quotient


def _over_norms(values: Floats, norms: Floats | None) -> Floats:
    """Values of rollouts over the norms of their problems, [n]; 0 where a norm is 0, and the values where there are none.

    Rollouts may cancel, so that a norm is any number of times smaller than they are. Beyond 1e100 the quotient says no more,
    and its square would be beyond a float.
    """
    if norms is None:
        return values
    with np.errstate(over="ignore"):
        quotients = np.divide(values, norms, out=np.zeros(len(values)), where=norms > 0)
    return np.clip(quotients, -_LARGEST_QUOTIENT, _LARGEST_QUOTIENT)


def errors_over_norms(rollouts: RolloutProducts, norms: Floats, alignments: Floats) -> Floats:
    """Standard errors of alignments that are products over norms, [n]; NaN where unknown.

    Each is the product's over the norm, and all of them times one factor, at most 1, that makes the ranking as reliable as
    that by the products. The norm is of the same rollouts: where one of eight earned the reward, it is most of both, and a
    quotient stays where both vary.

    Args:
        rollouts: of n problems.
        norms: of them, [n].
        alignments: the quotients, [n].
    """
    errors = np.where(np.isnan(rollouts.errors), np.nan, _over_norms(rollouts.errors, norms))
    finite = rollouts.finite
    plain = ranking_noise(rollouts.sums[finite], rollouts.errors[finite])
    divided = ranking_noise(alignments[finite], errors[finite])
    if plain is None or divided is None or divided.rollout_variance <= 0:
        return errors
    share = divided.rollout_variance / divided.alignment_variance if divided.alignment_variance > 0 else 1.0
    calibrated: Floats = errors * min(1.0, math.sqrt((1 - plain.reliability) / share))
    return calibrated


@dataclass(frozen=True)
class RankingNoise:
    """How much of the differences between alignments fresh rollouts would show again.

    Attributes:
        alignment_variance: of the alignments.
        rollout_variance: the part of it that is of the rollouts: the mean of the squared standard errors.
    """

    alignment_variance: float
    rollout_variance: float

    @property
    def reliability(self) -> float:
        """Expected Pearson correlation with the alignments of fresh rollouts of the same problems, in [0, 1]."""
        if self.alignment_variance <= 0:
            return 0.0
        return max(0.0, 1 - self.rollout_variance / self.alignment_variance)


def ranking_noise(alignments: Floats, errors: Floats) -> RankingNoise | None:
    """By the method of moments: alignments [n] with standard errors [n], NaN where unknown; None for fewer than 3 known.

    Problems without a signal count, with an error of 0: over all groups that a policy may draw, the mean of the sample
    variances is right, and it is not over those that happened to differ in their rewards.
    """
    known = np.isfinite(errors)
    if int(known.sum()) < _FEWEST:
        return None
    return RankingNoise(float(np.var(alignments[known], ddof=1)), float(np.mean(np.square(errors[known]))))


def shrunken_alignments(
    alignments: Floats, errors: Floats, counts: npt.NDArray[np.intp], signal: npt.NDArray[np.bool_]
) -> Floats:
    """Alignments drawn towards their mean by their errors, [n]: what to expect of fresh rollouts (empirical Bayes).

    `m + t^2/(t^2 + e^2) (a - m)` with m the mean and t^2 the variance of the alignments less that of their rollouts, both
    over problems with a signal; others stay 0. Each squared error e^2 is first pooled with what the others lead to expect
    for a group of that size, as if by three more rollouts. With fewer than 3 known errors nothing is shrunken.

    Args:
        alignments: [n].
        errors: their standard errors, [n]; NaN for a problem with one rollout.
        counts: rollouts of each, [n].
        signal: [n].
    """
    known = np.isfinite(errors) & signal
    noise = ranking_noise(alignments[known], errors[known])
    if noise is None:
        return alignments
    squares = np.where(known, np.square(errors), 0.0)
    expected = float(np.mean(counts[known] * squares[known])) / counts
    freedom = np.where(known, counts - 1.0, 0.0)
    pooled = (freedom * squares + _PRIOR_ROLLOUTS * expected) / (freedom + _PRIOR_ROLLOUTS)
    left = noise.alignment_variance - noise.rollout_variance
    between = max(left, _LEAST_SIGNAL * noise.rollout_variance)
    total = between + pooled
    share = np.divide(between, total, out=np.ones(len(alignments)), where=total > 0)
    mean = float(alignments[signal].mean())
    # Where nothing is uncertain, a difference from a mean that is far larger would lose the alignment itself.
    return np.where(signal & (share < 1), mean + share * (alignments - mean), alignments)


def rollout_weights(rollouts: RolloutProducts, norms: Floats | None) -> list[Floats]:
    """`clamp(0.25 + y/(2 sd), 0, 1)` for every rollout, and 0 in a group without a signal; n arrays, [rollouts] each.

    `y` is the alignment that the group would have if all of its rollouts were like this one, and `sd` the spread of these
    over the rollouts of the request: the rule of `group_weights` for a rollout, which has no earlier scores.

    Args:
        rollouts: of n problems.
        norms: of them, [n]; None where alignments are products.
    """
    lengths = None if norms is None else np.repeat(norms, rollouts.counts)
    alike = _over_norms(rollouts.flat * np.repeat(rollouts.counts, rollouts.counts), lengths)
    counted = np.repeat(rollouts.signal, rollouts.counts)
    largest = float(np.abs(alike[counted]).max(initial=0.0))
    # Of the largest, so that no square is beyond a float.
    scaled = alike / largest if largest > 0 else alike
    deviation = float(np.std(scaled[counted])) if counted.any() else 0.0
    ratio = scaled / (2 * deviation) if deviation > 1e-12 else np.sign(scaled)
    weights = np.where(counted, np.clip(0.25 + ratio, 0.0, 1.0), 0.0)
    return np.split(weights, np.cumsum(rollouts.counts)[:-1])
