"""Writes that wait for replicas: a real replica that hangs, and what a client gets that sends its request again."""

import os
import signal
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from clusters import Node, cluster, free_ports, until

from gradalign import Unavailable
from gradalign_scorer.settings import SettingsError, load_settings
from gradalign_scorer.store import RunStore, Wait
from gradalign_scorer.store.server.serverstate import ACL_USER

ONE = Wait(1, 0.3)


@contextmanager
def _pair(folder):
    """A server and its replica."""
    ports = free_ports(2)
    with ExitStack() as stack:
        nodes = []
        for number, port in enumerate(ports):
            settings = {"replicaof": f"127.0.0.1 {ports[0]}"} if number else {}
            nodes.append(Node(folder / f"node{number}", port, save="", repl_diskless_sync_delay="0", **settings))
            stack.callback(nodes[-1].end)
        until(nodes[1].follows)
        yield f"redis://{nodes[0].place}/0", nodes


@contextmanager
def _cluster(folder):
    """A cluster of a primary and its replica."""
    with cluster(folder, primaries=1, replicas=1) as made:
        yield made.url, made.nodes


@pytest.fixture(scope="module", params=[_pair, _cluster], ids=["server", "cluster"])
def house(request):
    """A URL, and a primary and its replica behind it."""
    with tempfile.TemporaryDirectory(prefix="ga-") as folder, request.param(Path(folder)) as made:
        yield made


@pytest.fixture
def own(kit, house):
    """A kit on that store."""
    return type(kit)(house[0], kit.run_id)


@contextmanager
def hanging(node):
    """The node answers nothing inside."""
    os.kill(node.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.process.pid, signal.SIGCONT)


def test_a_write_that_no_replica_has_is_a_503_until_one_has_it_and_is_applied_once(own, house):
    """The client's next try may come to another scorer, whose connections have written nothing yet."""

    async def unconfirmed(store):
        with pytest.raises(Unavailable, match=r"is stored, but 0 of the 1 replicas.*send it again") as caught:
            await store.commit_scores(own.scores({"p": 0.5}, request_id="q"))
        assert caught.value.retry_after

    async def go(store):
        another, third = (RunStore.connect(own.url, wait=ONE) for _ in range(2))
        await store.commit_refresh(own.refresh(1))
        run = await store.load_run(own.run_id)
        with hanging(house[1][1]):
            await unconfirmed(store)
            await unconfirmed(another)
            with pytest.raises(Unavailable, match="0 of the 1"):
                await third.stored_reply(run, "q", b"content")
            assert await store.stored_reply(run, "other", b"content") is None
            assert (await store.problem(own.run_id, "p")).times_scored == 1
        assert await store.stored_reply(run, "q", b"content") == b"reply"
        assert await store.commit_scores(own.scores({"p": 0.5}, request_id="q", reply=b"another")) == b"reply"
        await store.snapshot(own.run_id, "s")
        await store.restore(own.run_id, "s")
        await another.close()
        await third.close()
        return (await store.problem(own.run_id, "p")).times_scored

    assert own.run(go, wait=ONE) == 1


def test_what_is_acknowledged_is_on_the_replica(own, house):
    replica = house[1][1].plain

    async def go(store):
        for number in range(50):
            await store.commit_scores(own.scores({f"p{number}": 0.5}))
            rounds = replica.execute_command("READONLY") and replica.hget(f"gradalign:{{{own.run_id}}}:meta", "rounds")
            assert int(rounds) == number + 1

    own.run(go, wait=ONE)


def test_the_advised_user_may_wait_and_a_forgotten_script_is_loaded(own, house):
    url, nodes = house
    for node in nodes:
        node.plain.execute_command(*ACL_USER.replace("PASSWORD", "pw").split())
        node.plain.script_flush()

    async def go(store):
        await store.commit_scores(own.scores({"p": 0.5}))
        assert await store.check() == ()

    own.run(go, wait=ONE, url=url.replace("://", "://gradalign:pw@"))


def test_too_few_replicas_are_a_warning(own):
    async def go(store):
        (warning,) = await store.check()
        assert "1 replicas, fewer than GRADALIGN_REDIS_WAIT_REPLICAS, 2" in warning

    own.run(go, wait=Wait(2, 0.3))


def test_the_embedded_store_has_none_to_wait_for():
    with pytest.raises(SettingsError, match=r"GRADALIGN_REDIS_WAIT_REPLICAS .* is 1, and the embedded"):
        load_settings({"redis_wait_replicas": 1})
    assert load_settings({"redis_wait_replicas": 1, "redis_url": "redis://h"}).redis_wait_seconds == 1.0
