"""A server that restarts, is killed, hangs, fills up or turns read-only under a store that is in use."""

import asyncio
import os
import signal
import time

import pytest

from gradalign import Unavailable
from gradalign_scorer.store import EmbeddedServer, RunStore


@pytest.fixture
def server(tmp_path):
    """A server of the test's own."""
    with EmbeddedServer(tmp_path / "data") as server:
        yield server


@pytest.fixture
def own(kit, server):
    """A kit on that server."""
    return type(kit)(server.url, kit.run_id)


async def until_it_answers(store):
    for _ in range(200):
        try:
            return await store.ping()
        except Unavailable:
            await asyncio.sleep(0.05)
    raise AssertionError("the server did not come back")


async def until_it_is_back(server, pid):
    for _ in range(1000):
        if server.pid not in (None, pid) and server.ready:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the server was not started again")


def test_a_killed_server_keeps_what_it_acknowledged_and_comes_back_by_itself(own, server):
    async def go(store):
        acknowledged, killed = 0, False
        for i in range(300):
            if i == 150:
                os.kill(server.pid, signal.SIGKILL)
                killed = True
            try:
                await store.commit_scores(own.scores({f"p{i}": 0.5, "all": 0.5}, request_id=f"q{i}"))
            except Unavailable:
                await until_it_answers(store)
                await store.commit_scores(own.scores({f"p{i}": 0.5, "all": 0.5}, request_id=f"q{i}"))
            acknowledged += 1
        return acknowledged, killed, await store.problem(own.run_id, "all"), await store.load_problems(own.run_id)

    first = server.pid
    acknowledged, killed, state, columns = own.run(go)
    assert killed
    assert server.pid not in (None, first)
    assert state.times_scored == acknowledged == 300
    assert len(columns.ids) == 301


def test_a_pooled_connection_that_died_costs_no_request(own, server):
    """Even a commit without an id, which is never tried again, finds a live connection after a restart."""

    async def go(store):
        await asyncio.gather(*(store.commit_scores(own.scores({"p": 0.5})) for _ in range(20)))
        pid = server.pid
        os.kill(pid, signal.SIGTERM)
        await until_it_is_back(server, pid)
        await asyncio.gather(*(store.commit_scores(own.scores({"p": 0.5})) for _ in range(20)))
        return (await store.problem(own.run_id, "p")).times_scored

    assert own.run(go) == 40


def test_a_hanging_server_is_unavailable_in_bounded_time(own, server):
    async def go(store):
        await store.commit_scores(own.scores({"p": 0.5}))
        os.kill(server.pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            with pytest.raises(Unavailable, match="does not answer") as caught:
                await store.load_run(own.run_id)
            with pytest.raises(Unavailable):
                await store.commit_scores(own.scores({"p": 0.5}, request_id="q"))
            with pytest.raises(Unavailable):
                await store.list_runs()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        waited = time.monotonic() - began
        await store.commit_scores(own.scores({"p": 0.5}, request_id="q"))
        return waited, caught.value.retry_after, (await store.problem(own.run_id, "p")).times_scored

    waited, retry_after, times_scored = own.run(go, reply_seconds=0.5)
    assert waited < 60  # it hangs for ever
    assert retry_after == 1.0
    assert times_scored == 2


def test_no_server_at_all(kit, tmp_path):
    async def go(store):
        with pytest.raises(Unavailable, match="GRADALIGN_REDIS_URL"):
            await store.ping()

    began = time.monotonic()
    kit.run(go, url=f"unix://{tmp_path / 'nobody.sock'}")
    kit.run(go, url="redis://127.0.0.1:1/0")
    assert time.monotonic() - began < 60


def test_a_full_server_refuses_whole_commits_and_still_deletes(own, server):
    async def go(store):
        await store.commit_refresh(own.refresh(1))
        await store.commit_scores(own.scores({f"p{i}": 0.5 for i in range(500)}))
        await store.snapshot(own.run_id, "s")
        before = await own.dump(store)
        await store._redis.config_set("maxmemory", 100_000)
        for attempt in (
            store.commit_scores(own.scores({f"new{i}": 0.5 for i in range(2000)}, request_id="q")),
            store.commit_refresh(own.refresh(2)),
            store.commit_selection(own.selection(["p1"])),
            store.snapshot(own.run_id, "s"),
            store.restore(own.run_id, "s"),
        ):
            with pytest.raises(Unavailable, match="full: raise its maxmemory, or DELETE runs"):
                await attempt
        assert await own.dump(store) == before
        await store.delete_run(own.run_id)
        await store._redis.config_set("maxmemory", 0)
        return await store.list_runs()

    assert own.run(go) == []


def test_a_snapshot_refused_for_memory_leaves_the_earlier_one(own, server):
    async def go(store):
        await store.commit_scores(own.scores({"a": 0.5}))
        await store.snapshot(own.run_id, "s")
        await store.commit_scores(own.scores({"b": 0.5}))
        await store._redis.config_set("maxmemory", 100_000)
        with pytest.raises(Unavailable):
            await store.snapshot(own.run_id, "s")
        await store._redis.config_set("maxmemory", 0)
        await store.restore(own.run_id, "s")
        return (await store.load_problems(own.run_id)).ids

    assert own.run(go) == ["a"]


def test_a_read_only_replica_says_so(own, server, tmp_path):
    async def go(store):
        await store.commit_scores(own.scores({"p": 0.5}))
        await store._redis.replicaof("127.0.0.1", 1)
        with pytest.raises(Unavailable, match="point GRADALIGN_REDIS_URL at the primary"):
            await store.commit_scores(own.scores({"p": 0.5}))
        return await store.problem(own.run_id, "p")

    assert own.run(go).times_scored == 1


def test_a_password_that_is_missing_or_wrong_says_so(own, server):
    async def go(store):
        await store._redis.config_set("requirepass", "secret")

    own.run(go)

    async def refused(store):
        with pytest.raises(Unavailable, match="user and password in GRADALIGN_REDIS_URL"):
            await store.ping()

    own.run(refused)
    own.run(refused, url=server.url.replace("unix://", "unix://:wrong@"))
    own.run(lambda store: store.ping(), url=server.url.replace("unix://", "unix://:secret@"))


def test_two_stores_on_one_server_see_each_other(own):
    async def go(first):
        second = RunStore.connect(own.url)
        try:
            await first.commit_refresh(own.refresh(1))
            await second.commit_scores(own.scores({"p": 0.5}, validation_version=1, request_id="q", reply=b"one"))
            repeated = await first.commit_scores(own.scores({"p": 0.5}, validation_version=1, request_id="q"))
            await first.snapshot(own.run_id, "s")
            await second.restore(own.run_id, "s")
            same = await own.dump(first) == await own.dump(second)
            return repeated, (await first.load_validation(own.run_id, 1)).version, same
        finally:
            await second.close()

    assert own.run(go) == (b"one", 1, True)


def test_more_requests_than_connections_wait_their_turn(own):
    async def go(store):
        await asyncio.gather(*(store.commit_scores(own.scores({"p": 0.5})) for _ in range(500)))
        clients = await store._redis.info("clients")
        return (await store.problem(own.run_id, "p")).times_scored, clients["connected_clients"]

    times_scored, clients = own.run(go)
    assert times_scored == 500
    assert clients <= 2 * 64


def test_a_cancelled_request_leaves_no_reply_behind_for_the_next(own):
    """A request may be cancelled at any point of its way; its reply must never be taken for another's."""

    async def go(store):
        await store.commit_scores(own.scores({f"p{i}": i / 1024 for i in range(1024)}))
        for i in range(200):
            task = asyncio.create_task(store.load_problems(own.run_id, [f"p{j}" for j in range(1024)]))
            await asyncio.sleep(i * 2e-5)
            task.cancel()
            assert (await store.problem(own.run_id, f"p{i}")).alignment == i / 1024

    own.run(go)
