"""Problems that repeat an earlier one: refused, or dropped and counted where their source says `duplicates = "drop"`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gradalign_trainer.datasets.records.schema import BadRecord, Candidate, DataError, Place
from gradalign_trainer.datasets.sources.source import DataSource

__all__ = ["Repeats"]

SHOWN = 5
logger = logging.getLogger(__name__)


class Repeats:
    """Finds the problems of several sources that repeat one another.

    Attributes:
        dropped: problems left out so far.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._seen: set[tuple[str, str]] = set()

    def without(self, read: Iterator[Candidate | BadRecord], source: DataSource) -> Iterator[Candidate | BadRecord]:
        """Yield what is read but for problems of the same id and content as one before, if the source says to drop those."""
        if source.duplicates != "drop":
            for each in read:
                self._note(each)
                yield each
            return
        dropped: list[Place] = []
        count = 0
        try:
            for each in read:
                count += isinstance(each, Candidate)
                if self._note(each):
                    dropped.append(each.place)
                else:
                    yield replace(each, droppable=True) if isinstance(each, Candidate) else each
        finally:  # a limit stops the reading
            self._say(source.path, dropped, count)

    def _note(self, each: Candidate | BadRecord) -> bool:
        """Whether id and content were there before."""
        if not isinstance(each, Candidate):
            return False
        key = (each.problem.problem_id, each.content)
        known = key in self._seen
        self._seen.add(key)
        return known

    def settled(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The first problem of every id.

        Raises:
            DataError: another one has that id, and its source does not say to drop it.
        """
        first: dict[str, Candidate] = {}
        bad, dropped = [], []
        for candidate in candidates:
            earlier = first.setdefault(candidate.problem.problem_id, candidate)
            if earlier is not candidate and candidate.droppable:
                dropped.append(candidate.place)
            elif earlier is not candidate:
                bad.append(_repeated(candidate, earlier))
        if bad:
            raise _refused(bad)
        self._say("Of ids that different problems share", dropped, len(candidates))
        return list(first.values())

    def _say(self, where: str, dropped: Sequence[Place], count: int) -> None:
        self.dropped += len(dropped)
        if dropped:
            listing = ", ".join(map(str, dropped[:SHOWN])) + (", ..." if len(dropped) > SHOWN else "")
            logger.warning(
                "%s: dropped %d of %d problems, which repeat an earlier one: %s.", where, len(dropped), count, listing
            )


def _repeated(candidate: Candidate, earlier: Candidate) -> BadRecord:
    problem_id = candidate.problem.problem_id
    why = "the same content as" if problem_id.startswith("sha256-") else "the id of"
    return BadRecord(candidate.place, f"problem_id {problem_id!r}: {why} {earlier.place}.")


def _refused(bad: Sequence[BadRecord]) -> DataError:
    listing = "".join(f"\n  {each}" for each in bad[:SHOWN])
    return DataError(
        f"{len(bad)} problems repeat the id of another; expected distinct ids:{listing}\n"
        "Remove repeated problems, or give different ones different ids. To keep the first of each, say "
        'duplicates = "drop" in the source.',
        bad,
    )
