"""Requests that are sent twice: applied once where they have an id, and never tried again by us where they have none."""

import asyncio
import contextlib
import subprocess
import sys

import pytest

from gradalign import RequestIdReused, Unavailable
from gradalign_scorer.store import RunStore


class LossyProxy:
    """Passes bytes to a Unix socket and back, and drops the connection instead of passing the next reply to a script.

    Args:
        target: path of the server's socket.
        listen: path to listen on.
    """

    def __init__(self, target, listen):
        self.target, self.listen = target, listen
        self.lose, self.lost = 0, 0

    async def __aenter__(self):
        self.server = await asyncio.start_unix_server(self.serve, self.listen)
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        from_server, to_server = await asyncio.open_unix_connection(self.target)
        doomed = False

        async def forward():
            nonlocal doomed
            while data := await reader.read(65536):
                doomed = self.lose > 0 and b"EVALSHA" in data
                to_server.write(data)
            to_server.close()

        task = asyncio.create_task(forward())
        with contextlib.suppress(OSError):
            while data := await from_server.read(65536):
                if doomed:
                    self.lose, self.lost = self.lose - 1, self.lost + 1
                    break
                writer.write(data)
        task.cancel()
        writer.close()
        to_server.close()


def through_proxy(kit, tmp_path, act, *, lose):
    """Run `act(store)` with so many replies lost; what it returned and how many were."""

    async def go():
        proxy = LossyProxy(kit.url.removeprefix("unix://"), str(tmp_path / "proxy.sock"))
        async with proxy:
            store = RunStore.connect(f"unix://{tmp_path / 'proxy.sock'}")
            await store.ping()
            with contextlib.suppress(Unavailable):
                await store.stored_reply(await store.load_run(kit.run_id), "warm", b"")  # the scripts are loaded
            proxy.lose = lose
            try:
                return await act(store), proxy.lost
            finally:
                proxy.lose = 0
                await store.close()

    return asyncio.run(go())


def times_scored(kit):
    return kit.run(lambda store: store.problem(kit.run_id, "p")).times_scored


def test_a_commit_whose_reply_was_lost_is_tried_again_and_stored_once(kit, tmp_path):
    kit.run(lambda store: store.commit_scores(kit.scores({"p": 0.0})))
    commit = kit.scores({"p": 0.5}, request_id="q", reply=b"first")
    reply, lost = through_proxy(kit, tmp_path, lambda store: store.commit_scores(commit), lose=2)
    assert (reply, lost) == (b"first", 2)
    assert times_scored(kit) == 2


def test_a_commit_without_an_id_is_never_tried_again(kit, tmp_path):
    kit.run(lambda store: store.commit_scores(kit.scores({"p": 0.0})))

    async def act(store):
        with pytest.raises(Unavailable, match="does not answer"):
            await store.commit_scores(kit.scores({"p": 0.5}))

    _, lost = through_proxy(kit, tmp_path, act, lose=1)
    assert lost == 1
    assert times_scored(kit) == 2  # it was applied; only its reply is gone


def test_a_refresh_and_a_selection_are_stored_once_too(kit, tmp_path):
    async def act(store):
        refreshed = await store.commit_refresh(kit.refresh(1, request_id="r"))
        return refreshed, await store.commit_selection(kit.selection(["p"], request_id="s"))

    kit.run(lambda store: store.commit_scores(kit.scores({"p": 0.0})))
    _, lost = through_proxy(kit, tmp_path, act, lose=1)
    state = kit.run(lambda store: store.run_state(kit.run_id))
    assert (lost, state.rounds, state.validation_version) == (1, 3, 1)


def test_a_repetition_gets_the_first_reply_whatever_it_would_now_be(kit):
    async def go(store):
        first = await store.commit_scores(kit.scores({"p": 0.5}, version=1, request_id="q", reply=b"first"))
        await store.commit_scores(kit.scores({"p": 0.6}, version=9))
        again = await store.commit_scores(kit.scores({"p": 0.5}, version=1, request_id="q", reply=b"second"))
        run = await store.load_run(kit.run_id)
        early = await store.stored_reply(run, "q", b"content")
        with pytest.raises(RequestIdReused):
            await store.stored_reply(run, "q", b"other")
        unknown = [await store.stored_reply(run, i, b"content") for i in ("other", None)]
        return first, again, early, unknown, (await store.problem(kit.run_id, "p")).times_scored

    assert kit.run(go) == (b"first", b"first", b"first", [None, None], 2)


def test_replies_expire(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"p": 0.5}, request_id="q"))
        await asyncio.sleep(1.2)
        await store.commit_scores(kit.scores({"p": 0.5}, request_id="q"))
        return (await store.problem(kit.run_id, "p")).times_scored

    assert kit.run(go, reply_ttl=1) == 2


def test_ids_of_two_runs_are_apart(kit):
    other = type(kit)(kit.url, kit.run_id + "-b")
    kit.run(lambda store: store.commit_scores(kit.scores({"p": 0.5}, request_id="q", reply=b"a")))
    assert kit.run(lambda store: store.commit_scores(other.scores({"p": 0.5}, request_id="q", reply=b"b"))) == b"b"


def test_the_same_request_sent_by_many_at_once_is_stored_once(kit):
    async def go(store):
        commits = [kit.scores({"p": 0.5}, request_id="q", reply=b"%d" % i) for i in range(100)]
        return await asyncio.gather(*(store.commit_scores(commit) for commit in commits))

    assert len(set(kit.run(go))) == 1
    assert times_scored(kit) == 1


WRITER = """
import asyncio, sys
sys.path.insert(0, {folder!r})
from conftest import Kit
kit = Kit({url!r}, {run_id!r})
async def act(store):
    gate = asyncio.Semaphore(20)
    async def write(i):
        async with gate:
            await store.commit_scores(kit.scores({{f"p{{(i + j) % 50}}": 0.5 for j in range(25)}}))
    await asyncio.gather(*(write(i) for i in range(200)))
kit.run(act)
"""


def test_concurrent_writers_of_two_processes_lose_no_update(kit, request):
    folder = str(request.path.parents[2])
    code = WRITER.format(folder=folder, url=kit.url, run_id=kit.run_id)
    writers = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        _, errors = writer.communicate(timeout=300)
        assert writer.returncode == 0, errors.decode()

    async def go(store):
        return await store.load_problems(kit.run_id), await store.run_state(kit.run_id)

    columns, state = kit.run(go)
    assert sorted(columns.ids) == sorted(f"p{i}" for i in range(50))
    assert set(columns.column("times_scored")) == {2 * 200 * 25 / 50}
    assert (state.rounds, state.problems) == (400, 50)
