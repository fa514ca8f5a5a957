"""What the products over the validation rows say of a method: whether they add up to |v|, and how noisy each is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from gradalign.errors import DirectionError
from gradalign.forward.parameters.ranks import sum_over
from gradalign.forward.parameters.vector import Vector
from gradalign.forward.passes.batches import MicroBatch
from gradalign.forward.passes.methods import Method, Methods
from gradalign.forward.passes.replay import Passes

__all__ = ["Band", "Check", "best_check", "brief_check", "fidelity", "vector_products"]

_HOLDS: Final = 0.99
"""The least fidelity of a method that is taken without trying the next."""
_STEADY: Final = 0.9999
"""The fidelity from which on noise does not explain a quotient that is off by more than `_STEADY_BAND`."""
_STEADY_BAND: Final = (0.95, 1.05)
_CURVED: Final = 0.02
"""How far off a quotient is where a shorter step is tried: noise averages out in it, a curvature of log-probs does not."""
_BRIEF_BAND: Final = (0.95, 1.05)
"""Where a quotient alone is enough of a check."""


@dataclass(frozen=True)
class Check:
    """What a self-check found.

    Attributes:
        quotient: the sum of the products of the validation rows, and of what v carries of an earlier one, over |v|; 1 where
            all is well.
        fidelity: the Pearson correlation to expect between the products of these rows and exact ones, from how far the
            differences ahead of theta and behind it lie apart; None by forward mode, which takes no difference, and of a
            brief check.
        method: that was checked, and with method="auto" is used from now on.
        rms: change of a token's log-prob that the step made, in nats; None by forward mode.
        products: float64 [B] of each micro-batch, of this rank's validation rows.
    """

    quotient: float
    fidelity: float | None
    method: Method
    rms: float | None
    products: Sequence[Tensor]


@dataclass(frozen=True)
class Band:
    """Where a quotient may lie.

    Attributes:
        warn: a quotient outside is warned of.
        refuse: a quotient outside raises.
    """

    warn: tuple[float, float] = (0.9, 1.1)
    refuse: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        """Raise DirectionError unless the bands lie around 1 and in one another."""
        low, high = self.refuse
        if not (0 <= low <= self.warn[0] <= 1 <= self.warn[1] <= high):
            raise DirectionError(
                f"warn is {self.warn} and refuse {self.refuse}; expected two bands around 1, the first inside the second."
            )

    def judge(self, check: Check) -> None:
        """Warn of a quotient that is off, and raise DirectionError for one that is far off."""
        if self.warn[0] <= check.quotient <= self.warn[1]:
            _judge_steady(check)
            return
        text = (
            f"by method {check.method!r} the products of the validation rows add up to {check.quotient:.3f} |v| and not to "
            "|v|. Give the rows, weights and masks of the very batch that v is the gradient of (divided by the number of "
            "ranks where the engine averages over them), and the log-prob function that its loss uses; in 16 bits, try "
            "method='forward-ad' or 'float32'."
        )
        if self.refuse[0] <= check.quotient <= self.refuse[1]:
            warnings.warn(text, stacklevel=4)
            return
        raise DirectionError(f"{text} Refused outside {self.refuse}: a ranking by these would mean nothing.")

    def holds(self, check: Check, least: float) -> bool:
        """Whether a quotient needs no warning and the fidelity, where known, is at least so much."""
        inside = self.warn[0] <= check.quotient <= self.warn[1]
        return inside and (check.fidelity is None or check.fidelity >= least)


def _judge_steady(check: Check) -> None:
    """Warn of products that no noise explains, and that do not add up: those of another function than v's."""
    if (check.fidelity or 0.0) >= _STEADY and not _STEADY_BAND[0] <= check.quotient <= _STEADY_BAND[1]:
        warnings.warn(
            f"by method {check.method!r} the products of the validation rows add up to {check.quotient:.3f} |v| and not to "
            f"|v|, though they are steady (fidelity {check.fidelity:.5f}). Either rows, weights or masks are not quite "
            "those of the batch that v is the gradient of; or the model cuts its own gradient, by detach() or no_grad() "
            "around weights, and products of forward passes are of the whole derivative.",
            stacklevel=5,
        )


def fidelity(ahead: Sequence[Tensor], behind: Sequence[Tensor], *, both: bool, spread: Any) -> float:
    """The expected correlation with exact products, out of products by differences ahead of theta and behind it.

    Each of three passes has an error of its own, of variance e: the two differ by 6 e, their mean is off by e / 2, and one
    of them by 2 e. A curvature of log-probs counts as an error too, as it is one of a one-sided difference.

    Args:
        ahead: products of rows, float64 [B] a micro-batch.
        behind: the same from the other side.
        both: whether the mean of the two is used, or `ahead` alone.
        spread: ranks to add the rows over.
    """
    one, other = torch.cat(list(ahead)).cpu(), torch.cat(list(behind)).cpu()
    used = (one + other) / 2 if both else one
    sums = torch.stack([used.sum(), used.square().sum(), (one - other).square().sum(), used.new_tensor(len(used))])
    total, squares, apart, count = sum_over(sums, spread).tolist()
    variance = squares / count - (total / count) ** 2 if count > 2 else squares / max(1, count)
    error = apart / max(1, count) / (12 if both else 3)
    return math.sqrt(max(0.0, 1 - error / variance)) if variance > 0 else 0.0


def best_check(
    candidates: Sequence[Method], passes: Passes, methods: Methods, vector: Vector, *, rows: Any, band: Band
) -> Check:
    """The check of the first method that holds, or of the one that promises most.

    What fails on one rank fails on all: none would answer the other's sums.

    Args:
        candidates: methods, cheapest first.
        passes: over the rows that v is the gradient of.
        rows: the ranks that have some of them.
        band: where a quotient may lie.

    Raises:
        NotImplementedError, RuntimeError, DirectionError: every method failed; the first one's.
    """
    best: Check | None = None
    fineness = 1.0
    failed: Exception | None = None
    for method in candidates:
        found, finest = _by_best_step(method, passes, methods, vector, rows)
        if isinstance(found, Exception):
            failed = failed or found
            continue
        if best is None or _promise(found) > _promise(best):
            best, fineness = found, finest
        if band.holds(best, _HOLDS):
            break
    methods.step.fineness = fineness
    if best is None:
        assert failed is not None
        raise failed
    return best


def _by_best_step(
    method: Method, passes: Passes, methods: Methods, vector: Vector, rows: Any
) -> tuple[Check | Exception, float]:
    """The check of a method and the fineness of its step: shorter ones are tried for as long as they promise more."""
    step = methods.step
    step.fineness = fineness = 1.0
    best = _check(method, passes, methods, vector, rows)
    while isinstance(best, Check) and _curved(best) and step.refine():
        finer = _check(method, passes, methods, vector, rows)
        if isinstance(finer, Exception) or _promise(finer) <= _promise(best):
            break
        best, fineness = finer, step.fineness
    return best, fineness


def _check(method: Method, passes: Passes, methods: Methods, vector: Vector, rows: Any) -> Check | Exception:
    """The check of a method by the step as it is, or why there is none; on all ranks alike."""
    sides: list[list[Tensor]] = []
    problem: Exception | None = None
    try:
        sides = _sides(method, passes, methods, vector)
    except (NotImplementedError, RuntimeError, DirectionError) as error:
        problem = error
    if sum_over(torch.tensor(float(problem is not None)), rows) > 0:
        return problem or _failed_elsewhere(method)
    return _measured(method, sides, methods, vector, rows)


def _curved(check: Check) -> bool:
    """Whether a shorter step would make the products truer."""
    return check.fidelity is not None and abs(check.quotient - 1) > _CURVED


def brief_check(
    method: Method, passes: Passes, methods: Methods, vector: Vector, *, rows: Any, verify: bool
) -> Check | None:
    """The check of a method by its quotient alone, at the price of its products; None where more has to be looked at.

    Arguments are as in `best_check`; `verify` as in `Methods.slopes`.
    """
    products = vector_products(passes.given, methods.slopes(method, passes, verify=verify), vector)
    quotient = _quotient(products, vector, rows)
    if not _BRIEF_BAND[0] <= quotient <= _BRIEF_BAND[1]:
        return None
    return Check(quotient, None, method, None if method == "forward-ad" else methods.rms, products)


def _sides(method: Method, passes: Passes, methods: Methods, vector: Vector) -> list[list[Tensor]]:
    """Products of this rank's rows ahead of theta and behind it; by forward mode there is one side."""
    if method == "forward-ad":
        return [vector_products(passes.given, methods.slopes(method, passes, verify=False), vector)]
    return [vector_products(passes.given, side, vector) for side in methods.sides(method, passes)]


def _measured(method: Method, sides: Sequence[list[Tensor]], methods: Methods, vector: Vector, rows: Any) -> Check:
    if method == "forward-ad":
        products = sides[0]
        return Check(_quotient(products, vector, rows), None, method, None, products)
    ahead, behind = sides
    both = method != "one-sided"
    products = [(a + b) / 2 if both else a for a, b in zip(ahead, behind, strict=True)]
    quality = fidelity(ahead, behind, both=both, spread=rows)
    return Check(_quotient(products, vector, rows), quality, method, methods.rms, products)


def _failed_elsewhere(method: Method) -> DirectionError:
    return DirectionError(
        f"products of the validation rows failed by method {method!r} on another rank; its error says why."
    )


def vector_products(given: Sequence[MicroBatch], slopes: Sequence[Tensor], vector: Vector) -> list[Tensor]:
    """Products of rollouts out of the slopes of their tokens' log-probs."""
    scale = vector.size / vector.length
    return [-scale * batch.sums(batch.shares.to(s.device) * s) for batch, s in zip(given, slopes, strict=True)]


def _quotient(products: Sequence[Tensor], vector: Vector, rows: Any) -> float:
    total = torch.stack([p.sum().cpu() for p in products]).sum() if products else torch.zeros((), dtype=torch.float64)
    return (float(sum_over(total, rows)) + vector.carried) / (vector.expected + vector.carried)


def _promise(check: Check) -> float:
    """What took no difference promises the fidelity that holds, and more than that counts for nothing."""
    fidelity = _HOLDS if check.fidelity is None else min(_HOLDS, check.fidelity)
    return fidelity - abs(check.quotient - 1)
