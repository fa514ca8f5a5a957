"""Rounds and batches that went on without a ranking although one was wanted, counted by why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Self

from gradalign_trainer.numerals import counted

__all__ = ["AWAY", "NO_SIGNAL", "UNFIT", "UNMEASURED", "WORDS", "Fallbacks"]

REASONS = AWAY, NO_SIGNAL, UNFIT, UNMEASURED = "away", "no_signal", "unfit", "unmeasured"
UNKNOWN = "unknown"

WORDS: Mapping[str, str] = {
    AWAY: "the scorer was away",
    NO_SIGNAL: "no validation problem had a signal",
    UNFIT: "the scorer held no validation gradient that fits",
    UNMEASURED: "it could not be measured: products did not hold their self-check, or a row had no id",
    UNKNOWN: "counted before reasons were kept",
}


class Fallbacks(Counter[str]):
    """How often a ranking was wanted and there was none, by why: one of `REASONS`, or `UNKNOWN`."""

    @classmethod
    def of(cls, total: int, reasons: Mapping[str, int]) -> Self:
        """What a checkpoint kept; one of before reasons were kept has a total alone."""
        made = cls(reasons)
        made[UNKNOWN] += max(total - made.total(), 0)
        return made

    @classmethod
    def from_figures(cls, figures: Mapping[str, float]) -> Self:
        """What a line of metrics holds of them."""
        return cls.of(
            int(figures.get("fallbacks", 0)), {why: int(figures.get(f"fallbacks_{why}", 0)) for why in REASONS}
        )

    def told(self, one: str = "round", many: str = "", did: str = "chose at random") -> str:
        """In words: `2 rounds chose at random (1: the scorer was away; 1: no validation problem had a signal)`."""
        if not self.total():
            return f"{counted(0, one, many)} without the scorer"
        reasons = "; ".join(f"{self[why]}: {words}" for why, words in WORDS.items() if self[why])
        return f"{counted(self.total(), one, many)} {did} ({reasons})"

    def figures(self) -> dict[str, float]:
        """By name: `fallbacks`, and of each of `REASONS` one as `fallbacks_away`."""
        return {"fallbacks": float(self.total())} | {f"fallbacks_{why}": float(self[why]) for why in REASONS}
