"""The rounds of a run as they are committed, for pages that watch: server-sent events.

The store's stream of rounds is all there is to it, so any replica serves any run, and a stream that breaks is taken up
at another one.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from gradalign import InvalidValue, NotFound, Overloaded, RoundRecord, Unavailable
from gradalign.wire.checks import shown
from gradalign_scorer.store import RunStore

__all__ = ["Place", "Streams"]

_LOOK_SECONDS = 0.5
_BEAT_SECONDS = 15.0
_LIFE_SECONDS = 600.0
"""A stream ends after that, so that a key that was taken back sees no more; its client goes on with a new one."""
_ROUNDS = 500
"""Of one look: a thousand a second, and no more in memory."""
_PLACE = re.compile(r"([0-9]{1,15})(?:-([0-9]{1,15}))?")


@dataclass(frozen=True)
class Place:
    """A round that a client has seen. A restored or deleted run counts the same numbers again, at other times.

    Attributes:
        round: its number; 0 is before the first.
        at: Unix time in milliseconds; None takes whatever round has the number.
    """

    round: int
    at: int | None = None

    @classmethod
    def of(cls, record: RoundRecord) -> Place:
        """The place of a round."""
        return cls(record.round, int(record.at * 1000))

    @classmethod
    def parse(cls, text: str) -> Place:
        """A place from an event's id, or a round's number alone.

        Raises:
            InvalidValue: it is neither.
        """
        found = _PLACE.fullmatch(text)
        if not found:
            raise InvalidValue(
                f"Last-Event-ID is {shown(text)}; expected the id of an event of this route, or a round's number.",
                param="Last-Event-ID",
            )
        number, at = found.groups()
        return cls(int(number), None if at is None else int(at))

    def __str__(self) -> str:
        return f"{self.round}" if self.at is None else f"{self.round}-{self.at}"


class Streams:
    """The streams of one process, of which there are only so many at once.

    Args:
        store: of all runs.
        most: streams at once.
    """

    def __init__(self, store: RunStore, most: int) -> None:
        self._store = store
        self._most = most
        self.open = 0

    def check(self) -> None:
        """Refuse one more.

        Raises:
            Overloaded: there are as many as may be.
        """
        if self.open >= self._most:
            raise Overloaded(
                f"{self.open} pages watch runs of this scorer, which is all it takes at once; close some, or raise "
                "GRADALIGN_MAX_STREAMS.",
                retry_after=10.0,
            )

    async def newest(self, run_id: str) -> Place:
        """Where a client that has seen nothing begins: behind the last round.

        Raises:
            NotFound: no such run.
        """
        await self._store.run_state(run_id)
        (rounds,) = await self._store.recent_rounds([run_id], 1)
        return Place.of(rounds[-1]) if rounds else Place(0)

    async def events(self, run_id: str, place: Place, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
        """The stream's bytes. It ends with the run, with the process, or after ten minutes.

        Args:
            run_id: the training job.
            place: the last round that the client knows. Where the run no longer has it, a `restart` comes first: what the
                client knows of earlier rounds is no longer so.
            ended: whether the process is about to end.
        """
        if self.open >= self._most:
            return  # others came between the check and the first byte
        self.open += 1
        try:
            began = beaten = time.monotonic()
            yield b"retry: 2000\n\n"
            while not ended() and time.monotonic() - began < _LIFE_SECONDS:
                try:
                    place, events = await self._look(run_id, place)
                except NotFound:
                    yield b"event: gone\ndata: {}\n\n"
                    return
                except Unavailable:
                    events = b""  # the store will be back, and with it every round
                if not events and time.monotonic() - beaten >= _BEAT_SECONDS:
                    events = b": nothing new\n\n"
                if events:
                    beaten = time.monotonic()
                    yield events
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self.open -= 1

    async def _look(self, run_id: str, place: Place) -> tuple[Place, bytes]:
        """The events behind a place, and the place behind them."""
        rounds = await self._store.rounds(run_id, max(place.round - 1, 0), _ROUNDS)
        if place.round:
            first = rounds[0] if rounds else None
            if first is None or first.round != place.round or place.at not in (None, Place.of(first).at):
                place = await self.newest(run_id)
                return place, f"id: {place}\nevent: restart\ndata: {{}}\n\n".encode()
            rounds = rounds[1:]
        if not rounds:
            return place, b""
        return Place.of(rounds[-1]), b"".join(map(_event, rounds))


def _event(record: RoundRecord) -> bytes:
    data = json.dumps(record.to_map(), separators=(",", ":"))
    return f"id: {Place.of(record)}\nevent: round\ndata: {data}\n\n".encode()
