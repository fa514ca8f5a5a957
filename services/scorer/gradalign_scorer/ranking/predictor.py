"""What the features of a problem say about its quality: ridge regression on the scores of a run.

A run is summed up by its moments, which add: replicas hold nothing, and each score is one small addition in the store.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradalign import Unavailable

__all__ = ["HALF_LIFE", "Moments", "Predictor", "width_of"]

Floats = npt.NDArray[np.float64]

HALF_LIFE = 4096.0
"""Scores after which an older one counts half: the policy moves, and with it what a feature means."""

PENALTY = 0.1
"""Of the squared coefficients, in squared strengths: about one early score that said 0 along each feature of spread 1."""


@dataclass(frozen=True)
class Moments:
    """Discounted sums over n scores, of the features x (with a 1 before them, times the strength) and the alignment a.

    Attributes:
        width: F, features of a problem.
        count: of scores.
        squares: sum of a^2.
        products: sum of a x, [F + 1].
        gram: sum of x x^T, [F + 1, F + 1].
    """

    width: int
    count: float
    squares: float
    products: Floats
    gram: Floats

    @classmethod
    def of(cls, features: Floats, alignments: Floats, strength: float = 1.0) -> Moments:
        """Of scores [n], each with a signal, of problems with features [n, F].

        An alignment is taken for `strength` times a quality that is linear in the features, and noise.
        """
        inputs = strength * _with_one(features)
        return cls(
            width=features.shape[1],
            count=float(len(alignments)),
            squares=float(alignments @ alignments),
            products=inputs.T @ alignments,
            gram=inputs.T @ inputs,
        )

    def pack(self) -> bytes:
        """Little-endian float64 to be added one by one: count, squares, products, the upper triangle of the gram."""
        upper = self.gram[np.triu_indices(self.width + 1)]
        return np.concatenate([[self.count, self.squares], self.products, upper]).astype("<f8").tobytes()

    @classmethod
    def unpack(cls, packed: bytes) -> Moments:
        """Of packed bytes; Unavailable where they are damaged."""
        values = np.frombuffer(packed, dtype="<f8") if len(packed) % 8 == 0 else np.zeros(0)
        width = width_of(len(packed))
        if width < 1 or len(values) != _length(width) or not np.isfinite(values).all():
            raise Unavailable("the stored moments of the features are damaged; check the store's disk and memory.")
        size = width + 1
        gram = np.zeros((size, size))
        gram[np.triu_indices(size)] = values[2 + size :]
        gram += np.triu(gram, 1).T
        return cls(width, float(values[0]), float(values[1]), values[2 : 2 + size].astype(np.float64), gram)


def width_of(size: int) -> int:
    """Features of a problem that packed moments of `size` bytes are of; `_length` solved for it."""
    return round((math.sqrt(max(size - 7, 0)) - 5) / 2)


def _length(width: int) -> int:
    return 2 + (width + 1) + (width + 1) * (width + 2) // 2


class Predictor:
    """The ridge regression of moments: coefficients, and how sure they are.

    Args:
        moments: of a run.

    Attributes:
        coefficients: [F + 1], of 1 and the features.
        noise: standard deviation of a score around its prediction.
    """

    def __init__(self, moments: Moments) -> None:
        self.width = moments.width
        # The mean of all alignments is not shrunk.
        penalty = PENALTY * np.diag([1e-6, *np.ones(moments.width)])
        self._factor = np.linalg.cholesky(moments.gram + penalty)
        self.coefficients: Floats = self._solve(moments.products)
        rest = moments.squares - float(self.coefficients @ moments.products)
        self.noise = math.sqrt(max(rest, 0.0) / max(moments.count, 1.0))

    def _solve(self, right: Floats) -> Floats:
        solved: Floats = np.linalg.solve(self._factor.T, np.linalg.solve(self._factor, right))
        return solved

    def predict(self, features: Floats) -> Floats:
        """Expected qualities [n] of problems with features [n, F]."""
        predicted: Floats = _with_one(features) @ self.coefficients
        return predicted

    def draw(self, features: Floats, generator: np.random.Generator) -> Floats:
        """Qualities [n] that one draw of the coefficients from their posterior predicts."""
        deviation = np.linalg.solve(self._factor.T, generator.standard_normal(self.width + 1))
        drawn: Floats = _with_one(features) @ (self.coefficients + self.noise * deviation)
        return drawn


def _with_one(features: Floats) -> Floats:
    return np.concatenate([np.ones((len(features), 1)), features], axis=1)
