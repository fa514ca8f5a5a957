"""The rules a ranking sorts by. Each names its row in the reference implementation's table of methods.

A strategy sees the columns of one request and gives one priority per problem; higher is better. Ties go by problem id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from gradalign import InvalidValue, ValidationMissing

__all__ = ["STRATEGIES", "Candidates", "Strategy"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """The columns of one request, rows with NaN or Inf already left out.

    Attributes:
        run_id: seeds the random strategies, with `policy_version` and the problem's id.
        policy_version: of the request.
        ids: problem ids, n of them.
        alignments: with the validation gradient, [n]; 0 without a signal. None: the run holds no validation.
        norms: gradient norms, [n]; None of products without norms.
        pass_rates: mean rewards, [n]; None where not sent.
        pooled_alignments: gives the cosine with the pooled gradient of the candidates themselves, [n].
        cosines: gives the cosines of the candidates with one another, [n, n]; 0 without a signal.
        products: with the unit validation gradient, [n]; None of sketches, where they are alignments times norms.
        shrunken: the alignments drawn towards their mean by their standard errors, [n]; None where these are unknown.
        signal_chances: gives the chance that a group of each problem has a signal, [n], as it is believed now; None where
            pass rates or group sizes were not sent.
    """

    run_id: str
    policy_version: int
    ids: Sequence[str]
    alignments: Floats | None
    norms: Floats | None
    pass_rates: Floats | None
    pooled_alignments: Callable[[], Floats]
    cosines: Callable[[], Floats]
    products: Floats | None = None
    shrunken: Floats | None = None
    signal_chances: Callable[[], Floats | None] = lambda: None

    def lengths(self, strategy: str) -> Floats:
        """The norms, or InvalidValue."""
        if self.norms is None:
            raise InvalidValue(
                f"strategy {strategy!r} ranks by gradient norm and no norms were sent with the products; send norms, or use "
                "another strategy.",
                param="norms",
            )
        return self.norms

    def aligned(self, strategy: str) -> Floats:
        """The alignments, or ValidationMissing."""
        if self.alignments is None:
            raise ValidationMissing(
                f"strategy {strategy!r} ranks by alignment and run {self.run_id!r} holds no validation gradient; send "
                "/refresh_validation first, or use a strategy that needs none "
                f"({', '.join(name for name, rule in STRATEGIES.items() if not rule.needs_validation)}).",
                param="strategy",
            )
        return self.alignments

    def rates(self, strategy: str) -> Floats:
        """The pass rates, or InvalidValue."""
        if self.pass_rates is None:
            raise InvalidValue(
                f"strategy {strategy!r} ranks by pass rate and no pass_rates were sent; send the mean reward of each "
                "group in [0, 1].",
                param="pass_rates",
            )
        return self.pass_rates

    def uniform(self, salt: str) -> Floats:
        """One number in [0, 1) per problem, the same for the same run, policy version and problem; [n]."""
        prefix = f"{salt}|{self.run_id}|{self.policy_version}|"
        digests = (hashlib.blake2b((prefix + i).encode(), digest_size=8).digest() for i in self.ids)
        return np.array([int.from_bytes(d, "little") / 2**64 for d in digests])


class Strategy(Protocol):
    """A rule: its name on the wire, whether it needs a validation gradient, and its priorities."""

    name: ClassVar[str]
    needs_validation: ClassVar[bool]

    def priorities(self, candidates: Candidates) -> Floats:
        """One priority per problem, [n]; higher is better."""


class Cosine:
    """cos(g, v). Reference: `sim`, the paper's default."""

    name: ClassVar[str] = "cosine"
    needs_validation: ClassVar[bool] = True

    def priorities(self, candidates: Candidates) -> Floats:
        """The alignments."""
        return candidates.aligned(self.name)


class Dot:
    """<g, v/|v|>: alignment and size together. Reference: `dot`."""

    name: ClassVar[str] = "dot"
    needs_validation: ClassVar[bool] = True

    def priorities(self, candidates: Candidates) -> Floats:
        """Alignment times norm, or the products where they were sent."""
        alignments = candidates.aligned(self.name)
        return alignments * candidates.lengths(self.name) if candidates.products is None else candidates.products


class Anti:
    """-cos(g, v): the worst aligned first, as a control. Reference: `negsim`."""

    name: ClassVar[str] = "anti"
    needs_validation: ClassVar[bool] = True

    def priorities(self, candidates: Candidates) -> Floats:
        """The alignments, negated."""
        return -candidates.aligned(self.name)


class Norm:
    """|g|. Reference: `norm`."""

    name: ClassVar[str] = "norm"
    needs_validation: ClassVar[bool] = False

    def priorities(self, candidates: Candidates) -> Floats:
        """The norms."""
        return candidates.lengths(self.name)


class LearnAlign:
    """Cosine with the pooled gradient of the candidates themselves: no validation set. Reference: `align`."""

    name: ClassVar[str] = "learnalign"
    needs_validation: ClassVar[bool] = False

    def priorities(self, candidates: Candidates) -> Floats:
        """Alignment with the candidates' own pooled gradient."""
        return candidates.pooled_alignments()


class AccGreedy:
    """-|p - 0.5|: the problems solved about half of the time. Reference: `accgreedy`."""

    name: ClassVar[str] = "accgreedy"
    needs_validation: ClassVar[bool] = False

    def priorities(self, candidates: Candidates) -> Floats:
        """Minus the distance of the pass rate from one half."""
        return -np.abs(candidates.rates(self.name) - 0.5)


class AccuracyBand:
    """Random among 0.2 <= p <= 0.8, the others below them in random order. Reference: `acc`."""

    name: ClassVar[str] = "accuracy_band"
    needs_validation: ClassVar[bool] = False

    def priorities(self, candidates: Candidates) -> Floats:
        """In [0, 1) within the band and in [-1, 0) outside of it."""
        rates = candidates.rates(self.name)
        inside = (rates >= 0.2) & (rates <= 0.8)
        return candidates.uniform(self.name) - ~inside


class CosineAccuracy:
    """cos(g, v) * 4p(1 - p): alignment, discounted where the outcome is foregone. Reference: `simacc`."""

    name: ClassVar[str] = "cosine_accuracy"
    needs_validation: ClassVar[bool] = True

    def priorities(self, candidates: Candidates) -> Floats:
        """Alignment times four times the variance of the reward."""
        rates = candidates.rates(self.name)
        return candidates.aligned(self.name) * 4 * rates * (1 - rates)


class Random:
    """Seeded uniform. Reference: `rand`."""

    name: ClassVar[str] = "random"
    needs_validation: ClassVar[bool] = False

    def priorities(self, candidates: Candidates) -> Floats:
        """In [0, 1)."""
        return candidates.uniform(self.name)


class Diverse:
    """Greedy: each pick maximises cos(sum of picks, v), so near-duplicates are not picked together. Ours.

    A problem without a signal counts as 0: behind every pick that still helps, before those that hurt. For n problems of
    a request it costs O(n^2 dim) time and O(n^2) memory.
    """

    name: ClassVar[str] = "diverse"
    needs_validation: ClassVar[bool] = True

    def priorities(self, candidates: Candidates) -> Floats:
        """From 1 for the first pick in equal steps down to 1/n for the last."""
        alignments = candidates.aligned(self.name)
        count = len(candidates.ids)
        cosines = candidates.cosines()
        order = _greedy_order(alignments, candidates.lengths(self.name), cosines, candidates.ids)
        priorities = np.empty(count)
        priorities[order] = np.arange(count, 0, -1, dtype=np.float64) / count
        return priorities


def _greedy_order(alignments: Floats, norms: Floats, cosines: Floats, ids: Sequence[str]) -> list[int]:
    """Picks in order; `cosines` [n, n] are of the candidates with one another."""
    by_id = sorted(range(len(ids)), key=lambda i: ids[i])
    lengths = norms[by_id] / (norms.max(initial=0.0) or 1.0)
    signal = (lengths > 0) & (np.diagonal(cosines)[by_id] > 0)
    dots = alignments[by_id] * lengths
    products = cosines[np.ix_(by_id, by_id)] * np.outer(lengths, lengths)
    squares = np.square(lengths)
    left = np.ones(len(ids), dtype=bool)
    sum_dot, sum_square, cross, order = 0.0, 0.0, np.zeros(len(ids)), []
    for _ in ids:
        after = sum_square + 2 * cross + squares
        gains = np.where(signal & (after > 0), (sum_dot + dots) / np.sqrt(np.maximum(after, 1e-300)), 0.0)
        # argmax takes the first of equals, and the rows stand in the order of their ids.
        chosen = int(np.argmax(np.where(left, gains, -np.inf)))
        left[chosen] = False
        order.append(by_id[chosen])
        if signal[chosen]:
            sum_dot, sum_square = sum_dot + dots[chosen], after[chosen]
            cross = cross + products[chosen]
    return order


class Shrunken:
    """Alignments drawn towards their mean by the standard errors that their rollouts show: the less is known of a problem,
    the less it stands out. Ours; needs products.
    """

    name: ClassVar[str] = "shrunken"
    needs_validation: ClassVar[bool] = True

    def priorities(self, candidates: Candidates) -> Floats:
        """The shrunken alignments."""
        candidates.aligned(self.name)
        if candidates.shrunken is None:
            fault = (
                "each has one rollout, whose error nothing tells"
                if candidates.products is not None
                else "sketches do not"
            )
            raise InvalidValue(
                f"strategy {self.name!r} needs the products of several rollouts of a problem to tell its standard error: "
                f"{fault}. Use cosine, or send products of two rollouts or more.",
                param="strategy",
            )
        return candidates.shrunken


class Posterior:
    """The chance that a group has a signal, E[1 - p^G - (1 - p)^G] under the belief about the problem's success rate p.

    All of its pass rates so far make that belief, after MoPPS: `gradalign_scorer.posterior`.
    """

    name: ClassVar[str] = "posterior"
    needs_validation: ClassVar[bool] = False

    def priorities(self, candidates: Candidates) -> Floats:
        """Expected chances, in [0, 1)."""
        chances = candidates.signal_chances()
        if chances is None:
            missing = "pass_rates" if candidates.pass_rates is None else "rollouts"
            raise InvalidValue(
                f"strategy {self.name!r} ranks by beliefs about success rates and no {missing} were sent; send the mean "
                "reward of each group (pass_rates) and how many rollouts it is of (rollouts).",
                param=missing,
            )
        return chances


_ALL: tuple[type[Strategy], ...] = (
    Cosine,
    Dot,
    Anti,
    Norm,
    LearnAlign,
    AccGreedy,
    AccuracyBand,
    CosineAccuracy,
    Random,
    Diverse,
    Shrunken,
    Posterior,
)
STRATEGIES: Mapping[str, Strategy] = {kind.name: kind() for kind in _ALL}
