import asyncio

import numpy as np
import pytest
import torch

from gradalign import MalformedRequest, SketchMatrix
from gradalign_scorer.http.bodies import Body
from gradalign_scorer.http.buffers import BufferPool
from gradalign_scorer.ranking.alignment import SketchRows, products
from gradalign_scorer.service.engine import Engine
from gradalign_scorer.service.streaming import arriving_products

MIB = 1 << 20


def test_a_buffer_given_back_is_lent_again():
    pool = BufferPool(16 * MIB)
    first = pool.take(5 * MIB + 3)
    address = first.block.data_ptr()
    assert len(first.view) == 5 * MIB + 3
    pool.give(first)
    assert pool.free_bytes == 6 * MIB
    again = pool.take(4 * MIB)
    assert (again.block.data_ptr(), len(again.view), pool.free_bytes) == (address, 4 * MIB, 0)
    again.view[:3] = b"abc"
    assert bytes(again.view[:3]) == b"abc"


def test_a_buffer_much_too_large_is_left_for_others():
    pool = BufferPool(64 * MIB)
    pool.give(pool.take(32 * MIB))
    assert pool.take(2 * MIB).block.numel() == 2 * MIB
    assert pool.free_bytes == 32 * MIB


def test_free_buffers_are_bounded_and_the_oldest_go_first():
    pool = BufferPool(10 * MIB)
    buffers = [pool.take(size * MIB) for size in (4, 5, 3)]
    for buffer in buffers:
        pool.give(buffer)
    assert pool.free_bytes == 8 * MIB
    pool.give(pool.take(11 * MIB))
    assert pool.free_bytes == 8 * MIB
    pool.give(pool.take(100))
    assert pool.free_bytes == 8 * MIB
    assert len(pool.take(0).view) == 0


def run(act):
    async def go():
        engine = Engine(torch.device("cpu"), 4)
        engine.start()
        try:
            return await act(engine)
        finally:
            engine.close(5)

    return asyncio.run(go())


@pytest.mark.parametrize("offset", [64, 65])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_products_taken_as_the_rows_arrive_are_those_of_the_whole(offset, dtype):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((9003, 1024)).astype(np.float32)
    rows[17], rows[4000, 3] = 0, np.nan
    matrix = SketchMatrix.of(rows, dtype) if dtype == "int8" else SketchMatrix.of(rows.astype(dtype))
    whole = bytearray(offset) + bytes(matrix.data)
    vector = torch.from_numpy(rng.standard_normal(1024).astype(np.float32))

    async def act(engine):
        data = bytearray(len(whole))
        body = Body("application/msgpack", memoryview(data), arrived=0)
        sketches = SketchMatrix(body.data[offset:], *rows.shape, dtype, matrix.scales)

        async def bring():
            for start in range(0, len(whole), 1_234_567):
                await asyncio.sleep(0)
                data[start : start + 1_234_567] = whole[start : start + 1_234_567]
                body.take(min(start + 1_234_567, len(whole)))

        body.begin(asyncio.create_task(bring()))
        return await arriving_products(sketches, vector, body, engine)

    got = run(act)
    want = products(SketchRows([matrix]), vector, torch.device("cpu"))
    np.testing.assert_array_equal(got.dots, want.dots)
    np.testing.assert_array_equal(got.norms, want.norms)
    np.testing.assert_array_equal(got.finite, want.finite)
    assert np.flatnonzero(~got.finite).tolist() == [4000]


def test_a_body_that_breaks_off_ends_the_waiting():
    async def act(engine):
        body = Body("application/msgpack", memoryview(bytearray(20 * MIB)), arrived=0)
        sketches = SketchMatrix(body.data, 10 * 1024, 1024, "float16")

        async def bring():
            await asyncio.sleep(0.01)
            body.take(9 * MIB)
            raise MalformedRequest("gone")

        body.begin(asyncio.create_task(bring()))
        await arriving_products(sketches, None, body, engine)

    with pytest.raises(MalformedRequest, match="gone"):
        run(act)


def test_digests_tell_bodies_apart():
    rng = np.random.default_rng(0)
    data = bytearray(rng.bytes(3 * MIB + 77))

    def digest(content):
        return Body("application/msgpack", memoryview(content)).digest()

    first = digest(data)
    assert digest(bytearray(data)) == first
    for place in (0, 200_000, 300_000, 2 * MIB, len(data) - 1):
        other = bytearray(data)
        other[place] ^= 1
        assert digest(other) != first
    moved = bytearray(data)
    moved[MIB : MIB + 8192], moved[2 * MIB : 2 * MIB + 8192] = data[2 * MIB : 2 * MIB + 8192], data[MIB : MIB + 8192]
    assert digest(moved) != first
    assert digest(data + b"\0") != first
