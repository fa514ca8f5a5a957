"""Which method products are taken by: the one that was asked for, the one that a check found to hold, or one by dtype."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, Literal, get_args

from torch import Tensor

from gradalign.errors import DirectionError
from gradalign.forward.passes.batches import MicroBatch
from gradalign.forward.passes.methods import Method, Methods
from gradalign.forward.passes.replay import Passes

__all__ = ["MethodChoice"]

logger = logging.getLogger(__name__)

METHODS: Final = ("auto", *get_args(Method))


class MethodChoice:
    """The choice of one direction, from `take` to `take`.

    Args:
        asked: of the caller.
        whole: whether there is a model, of whole parameters perhaps, to give dual numbers to.
        verify_every: takes between two comparisons of given log-probs with a pass of their own.

    Raises:
        DirectionError: there is no such method, it needs a model, or `verify_every` is below 1.
    """

    def __init__(self, asked: Method | Literal["auto"], *, whole: bool, verify_every: int) -> None:
        if asked not in METHODS:
            raise DirectionError(f"method is {asked!r}; expected one of {', '.join(map(repr, METHODS))}.")
        if asked == "forward-ad" and not whole:
            raise DirectionError("method 'forward-ad' needs a model, whose modules it gives dual numbers to.")
        if verify_every < 1:
            raise DirectionError(f"verify_every is {verify_every}; expected at least 1, after each take.")
        self._asked, self._whole = asked, whole
        self._verify_every, self._takes = verify_every, 0
        self._found: Method | None = None
        self._settled: Method | None = None
        self._narrow = self._trusts = self._looked = False

    def begin(self, *, narrow: bool) -> None:
        """A new v was taken; `narrow` says whether any weight is of 16 bits."""
        self._found, self._narrow, self._looked = None, narrow, False
        self._trusts &= self._takes % self._verify_every != 0
        self._takes += 1

    def settle(self, method: Method) -> None:
        """A check found that a method holds; it saw the given log-probs too, where the method takes them."""
        self._found = self._settled = method
        self._trusts |= method == "one-sided"

    def brief(self, given: Sequence[MicroBatch]) -> Method | None:
        """The method that the last check found to hold, where these batches have what it takes; None before a check."""
        missing = self._settled == "one-sided" and _differences(given)[0] != "one-sided"
        return None if missing else self._settled

    @property
    def verifies(self) -> bool:
        """Whether given log-probs are to be compared with a pass of their own."""
        return not self._trusts

    def watches(self) -> bool:
        """Whether passes are to say that they run under autocast, which is not known yet and would matter."""
        return self._asked == "auto" and self._found is None and not (self._narrow or self._looked)

    def candidates(self, given: Sequence[MicroBatch]) -> list[Method]:
        """The methods to check, cheapest first."""
        if self._asked != "auto":
            return [self._asked]
        whole: list[Method] = ["forward-ad"] if self._whole else []
        return [*_differences(given), *whole, "float32"]

    def slopes(self, passes: Passes, methods: Methods) -> list[Tensor]:
        """Slopes by the method that was asked for or found; otherwise by dtype.

        Raises:
            DirectionError: as `Methods.slopes`; or `one-sided` was asked for and log-probs are missing.
        """
        first = _differences(passes.given)[0]
        chosen = self._found or self._asked
        if chosen == "one-sided" and first != "one-sided":
            if self._asked == "one-sided":
                raise DirectionError("method 'one-sided' needs logprobs_at, the log-probs at the weights as they are.")
            chosen = "central"
        if chosen != "auto":
            return self._by(chosen, passes, methods)
        if not self._narrow:
            slopes = self._by(first, passes, methods)
            self._narrow, self._looked = passes.autocast, True
            if not self._narrow:
                return slopes
        try:
            return self._by("forward-ad", passes, methods)
        except (NotImplementedError, RuntimeError, DirectionError) as error:
            logger.info("No forward-mode derivatives of this model (%s); the products' passes run in float32.", error)
            return self._by("float32", passes, methods)

    def state(self) -> tuple[int, Method | None, bool, bool, bool, Method | None]:
        """As `restore` takes it."""
        return self._takes, self._found, self._narrow, self._trusts, self._looked, self._settled

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from what `state` gave."""
        self._takes, self._found, self._narrow, self._trusts, self._looked, self._settled = state

    def _by(self, method: Method, passes: Passes, methods: Methods) -> list[Tensor]:
        slopes = methods.slopes(method, passes, verify=self.verifies)
        self._trusts |= method == "one-sided"
        return slopes


def _differences(given: Sequence[MicroBatch]) -> list[Method]:
    return ["one-sided", "central"] if given and all(g.logprobs_at is not None for g in given) else ["central"]
