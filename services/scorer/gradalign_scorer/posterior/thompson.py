"""What a problem is worth by its success rate p: the chance that a group of G rollouts has a signal, 1 - p^G - (1 - p)^G.

A group whose rollouts all earn the same has no advantage and gives no gradient. The chance falls with the distance of p
from one half whatever G is, so under one draw of the rates the best are those nearest to one half, which MoPPS (arXiv
2507.04632) takes. The distance tells apart what the chance, close to 1 for large G, no longer does in floating point.

ARCUS (arXiv 2609.38018) has a bound on the chance under a Gaussian belief of arcsin(sqrt(p)) as one factor of its score; its
other factor, a moving target, and its filter are not here.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from gradalign_scorer.posterior.beliefs import Beliefs

__all__ = ["drawn_rates", "expected_signal"]

Floats = npt.NDArray[np.float64]


def expected_signal(beliefs: Beliefs, group_size: npt.ArrayLike) -> Floats:
    """The chance of a signal under each belief, [n], in [0, 1].

    Args:
        beliefs: about n problems.
        group_size: G, [n] or one for all; at least 2, since one rollout has no advantage over itself.
    """
    size = np.maximum(np.asarray(group_size, dtype=np.float64), 2.0) + np.zeros(len(beliefs.alpha))
    alike = _moment(beliefs.alpha, beliefs.beta, size) + _moment(beliefs.beta, beliefs.alpha, size)
    return np.clip(1 - alike, 0.0, 1.0)


def drawn_rates(ids: Sequence[str], beliefs: Beliefs, key: Sequence[int]) -> Floats:
    """A rate of each problem out of its belief, [n]; the same for the same key and beliefs, in whatever order they come.

    Args:
        ids: of the problems.
        beliefs: about them.
        key: seed and whatever else decides the draw, integers from 0.
    """
    order = np.argsort(_codes(ids), kind="stable")
    rates = np.empty(len(ids))
    rates[order] = np.random.default_rng(list(key)).beta(beliefs.alpha[order], beliefs.beta[order])
    return rates


def _moment(alpha: Floats, beta: Floats, power: Floats) -> Floats:
    """E[p^power] of Beta(alpha, beta)."""
    a, b, g = (torch.from_numpy(np.ascontiguousarray(values)) for values in (alpha, beta, power))
    logs = torch.lgamma(a + g) - torch.lgamma(a) + torch.lgamma(a + b) - torch.lgamma(a + b + g)
    moment: Floats = logs.exp().numpy()
    return moment


def _codes(ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """A number for each id, to order them by: sorting a million strings takes much longer."""
    data = [each.encode() for each in ids]
    return np.array([zlib.crc32(each) | zlib.adler32(each) << 32 for each in data], dtype=np.uint64)
