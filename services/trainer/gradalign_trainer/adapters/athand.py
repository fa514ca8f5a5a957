"""Products by the log-probs that a trainer has at hand, which spare a pass of its model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from gradalign.errors import DirectionError
from gradalign.forward import MicroBatch

__all__ = ["by_logprobs_at_hand"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


def by_logprobs_at_hand(take: Callable[[MicroBatch], T], given: MicroBatch, whose: str) -> T:
    """What `take` gives with the log-probs of a micro-batch; without them where it has none, or another policy's.

    Args:
        take: products of a micro-batch.
        given: with log-probs or without.
        whose: the name that the trainer has for them, for the log.
    """
    if given.logprobs_at is not None:
        try:
            return take(given)
        except DirectionError as error:
            logger.info("%s are not used for products: %s", whose, error)
    return take(replace(given, logprobs_at=None))
