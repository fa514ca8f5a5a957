"""Computing on the rows of a request while the others are still on their way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from gradalign import SketchMatrix
from gradalign_scorer.http.bodies import Body
from gradalign_scorer.ranking.alignment import Products, SketchRows, products
from gradalign_scorer.service.engine import Engine

__all__ = ["arriving_products"]

_PIECE = 8 << 20
"""Bytes of sketches to a job: enough to be worth a job, and small enough to be done while the next ones arrive."""


async def arriving_products(
    sketches: SketchMatrix, vector: Tensor | None, body: Body, engine: Engine, *, digested: bool = False
) -> Products | None:
    """Products of the sketches with a vector, taken in pieces as they arrive; None where they are too few for that.

    When this returns all of the body is there.

    Args:
        sketches: a view of the end of the body.
        vector: float32 [dim], or None for norms alone.
        body: perhaps still coming.
        engine: to compute on; a slow sender holds no place in its queue.
        digested: also take the sums of the body's digest, while the rows are in the cache.
    """
    if sketches.data.nbytes <= _PIECE or body.arrived == len(body.data):
        await body.whole()
        return None
    row = sketches.data.nbytes // sketches.rows
    start = len(body.data) - sketches.data.nbytes
    step, done, parts = max(1, _PIECE // row), 0, []
    while done < sketches.rows:
        stop = min(done + step, sketches.rows)
        await body.until(start + stop * row)
        piece = SketchRows([sketches.part(slice(done, stop))])
        job = partial(products, piece, vector, engine.device)
        parts.append(await engine.run(partial(_summed, job, body, start + stop * row) if digested else job))
        done = stop
    await body.whole()
    return Products.joined(parts)


def _summed(job: Callable[[], Products], body: Body, stop: int) -> Products:
    parts = job()
    body.sum_until(stop)
    return parts
