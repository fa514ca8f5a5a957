"""The order of a run's problems, brought up to date behind the commits.

A commit writes the records and notes whose places have changed; moving those in a sorted set of a million takes longer than
all the rest of it, and nobody waits for it but who reads the order. So it is done once the reply is out, and by every
reader of the order first, in case that it was not done yet.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from gradalign import Unavailable
from gradalign_scorer.store.connection import Connection
from gradalign_scorer.store.keys import RunKeys

__all__ = ["Sorting"]


class Sorting:
    """Brings orders up to date.

    Args:
        connection: to the store.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def soon(self, run_id: str) -> None:
        """Bring a run's order up to date while the caller goes on. What a failure leaves undone is left to readers."""
        if run_id not in self._tasks:
            task = asyncio.create_task(self._quietly(run_id))
            self._tasks[run_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(run_id))

    async def now(self, run_id: str) -> None:
        """Return once the order has all that was committed before; at once, and with the order as it is, where the store
        is full or read-only.
        """
        with suppress(Unavailable):
            left = await self._one(run_id)
            for _ in range(left):
                if not await self._one(run_id):
                    return

    async def settle(self) -> None:
        """Return once nothing is being done."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def close(self) -> None:
        """End what is being done."""
        for task in list(self._tasks.values()):
            task.cancel()
            await asyncio.wait([task])

    async def _quietly(self, run_id: str) -> None:
        with suppress(Unavailable):
            while await self._one(run_id):
                pass

    async def _one(self, run_id: str) -> int:
        """Sort one commit's problems; how many commits are left."""
        keys = RunKeys(run_id)
        names = [keys.problems, keys.priorities, keys.unsorted]
        # A try whose reply was lost is no loss: the next takes another commit, and the lost one is done.
        _, left = await self._connection.run("sort", names, [], repeatable=True)
        return int(left)
