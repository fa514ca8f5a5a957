"""Large bodies on their way: read straight into a buffer, computed on while they come, and never mixed up."""

import json
import socket
import threading
import time

import httpx
import msgpack
import numpy as np
import psutil
import pytest

from gradalign import Client, Projection
from gradalign.client.calls import CallBuilder

DIM, ROWS = 4096, 2500
PROJECTION = Projection(dim=DIM, seed=0, parameters="cd" * 32)
MIB = 1 << 20


@pytest.fixture(scope="module")
def large():
    """Sketches of 20 MiB, float16, and their ids."""
    rng = np.random.default_rng(0)
    return [f"problem-{i}" for i in range(ROWS)], rng.standard_normal((ROWS, DIM)).astype(np.float16)


@pytest.fixture
def run(scorer, run_id, large):
    """A run that holds a validation gradient."""
    with Client(scorer.url, run_id=run_id) as client:
        client.refresh_validation(large[0][:8], large[1][:8], policy_version=0, projection=PROJECTION)
    return run_id


def request_bytes(run_id, ids, sketches, *, version=0, **more):
    """A whole POST /score, as one connection sends it."""
    call = CallBuilder(run_id, None).score(ids, sketches, version, PROJECTION, **more)
    body = b"".join(bytes(part) for part in call.parts)
    head = (
        f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {call.content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


class Connection:
    """A raw connection that reads one reply at a time."""

    def __init__(self, scorer):
        self.socket = scorer.connect()
        self.rest = b""

    def send(self, *parts):
        for part in parts:
            self.socket.sendall(part)

    def reply(self):
        while b"\r\n\r\n" not in self.rest:
            self._more()
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
        while len(self.rest) < length:
            self._more()
        body, self.rest = self.rest[:length], self.rest[length:]
        return int(lines[0].split()[1]), json.loads(body)

    def _more(self):
        received = self.socket.recv(1 << 16)
        assert received, "the connection was closed"
        self.rest += received


@pytest.fixture
def connection(scorer):
    made = Connection(scorer)
    yield made
    made.socket.close()


def cosines(large):
    ids, sketches = large
    rows = sketches.astype(np.float64)
    mean = rows[:8].sum(0)
    values = rows @ (mean / np.linalg.norm(mean)) / np.linalg.norm(rows, axis=1)
    return dict(zip(ids, values, strict=True))


def test_alignments_of_a_large_body_are_right(scorer, run, large):
    with Client(scorer.url, run_id=run) as client:
        ranking = client.score(*large, policy_version=0, projection=PROJECTION)
    want = cosines(large)
    assert len(ranking.problem_ids) == ROWS
    np.testing.assert_allclose(ranking.alignments, [want[i] for i in ranking.problem_ids], atol=2e-5)


def test_rows_score_alike_in_a_large_and_in_small_requests(scorer, run, large):
    ids, sketches = large
    with Client(scorer.url, run_id=run) as client:
        whole = client.score(ids, sketches, policy_version=0, projection=PROJECTION)
        part = client.score(ids[2000:2300], sketches[2000:2300], policy_version=0, projection=PROJECTION)
    values = dict(zip(whole.problem_ids, whole.alignments, strict=True))
    np.testing.assert_allclose(part.alignments, [values[i] for i in part.problem_ids], atol=1e-6)


def test_a_next_request_behind_a_large_body_is_read_as_one(connection, run, large):
    """All bytes of three requests are sent before the first reply is read."""
    ids, sketches = large
    parts = [*request_bytes(run, ids, sketches), *request_bytes(run, ids[:5], sketches[:5])]
    probe = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    sender = threading.Thread(target=connection.send, args=(b"".join([*parts, probe]),))
    sender.start()
    replies = [connection.reply() for _ in range(3)]
    sender.join()
    assert [status for status, _ in replies] == [200, 200, 200]
    assert [len(reply["problem_ids"]) for _, reply in replies[:2]] == [ROWS, 5]


def test_a_connection_is_used_again_and_again(connection, run, large):
    ids, sketches = large
    for count in (ROWS, 1, 600, ROWS, 40):
        connection.send(*request_bytes(run, ids[:count], sketches[:count]))
        status, reply = connection.reply()
        assert (status, len(reply["problem_ids"])) == (200, count)


def test_a_body_in_drips_and_bursts_is_put_together(connection, run, large):
    head, body = request_bytes(run, large[0][:300], large[1][:300])
    connection.send(head[:20])
    time.sleep(0.02)
    connection.send(head[20:], body[:1])
    for start in range(1, len(body), 300_007):
        time.sleep(0.005)
        connection.send(body[start : start + 300_007])
    status, reply = connection.reply()
    assert status == 200
    want = cosines(large)
    np.testing.assert_allclose(reply["alignments"], [want[i] for i in reply["problem_ids"]], atol=2e-5)


def test_expecting_clients_are_told_to_go_on(connection, run, large):
    head, body = request_bytes(run, *large)
    connection.send(head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    assert connection.socket.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(body)
    assert connection.reply()[0] == 200


def test_chunked_bodies_still_work(scorer, run, large):
    _, body = request_bytes(run, *large)
    pieces = (body[start : start + MIB] for start in range(0, len(body), MIB))
    reply = httpx.post(
        f"{scorer.url}/score", content=pieces, headers={"Content-Type": "application/msgpack"}, timeout=120
    )
    assert len(reply.json()["problem_ids"]) == ROWS


def test_a_bad_header_is_answered_although_the_sketches_still_come(connection, run, large):
    ids, sketches = large
    head, body = request_bytes(run, ids, sketches)
    body = body.replace(b"problem-2499", b"problem-1500", 1)
    sender = threading.Thread(target=connection.send, args=(head, body))
    sender.start()
    status, reply = connection.reply()
    sender.join()
    assert status == 422
    assert "problem_ids" in reply["error"]["message"]
    connection.send(*request_bytes(run, ids[:3], sketches[:3]))
    assert connection.reply()[0] == 200


def test_refusals_of_the_run_are_answered_behind_the_whole_body(connection, run, large):
    ids, sketches = large
    other = Projection(dim=DIM, seed=9, parameters="cd" * 32)
    call = CallBuilder(run, None).score(ids, sketches, 0, other)
    body = b"".join(bytes(part) for part in call.parts)
    head = request_bytes(run, ids, sketches)[0].replace(
        b"Content-Length: ", b"X-Was: "
    ).removesuffix(b"\r\n\r\n") + f"\r\nContent-Length: {len(body)}\r\n\r\n".encode()  # fmt: skip
    connection.send(head, body)
    status, reply = connection.reply()
    assert (status, reply["error"]["type"]) == (409, "projection_mismatch")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_connection_that_breaks_in_the_middle_harms_nobody(scorer, run, large, share):
    head, body = request_bytes(run, *large)
    for _ in range(3):
        broken = scorer.connect()
        broken.sendall(head)
        broken.sendall(body[: int(share * len(body))])
        broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # reset instead of a farewell
        broken.close()
    with Client(scorer.url, run_id=run) as client:
        assert client.run().problems == 0
        assert len(client.score(*large, policy_version=0, projection=PROJECTION).problem_ids) == ROWS


def test_a_stalled_sender_is_told_so_and_its_memory_is_free_again(start_scorer, run_id, large):
    scorer = start_scorer(BODY_SECONDS="0.5", MAX_ADMITTED_BYTES=str(32 * MIB), MAX_BODY_BYTES=str(32 * MIB))
    with Client(scorer.url, run_id=run_id) as client:
        client.refresh_validation(large[0][:8], large[1][:8], policy_version=0, projection=PROJECTION)
        head, body = request_bytes(run_id, *large)
        stalled = Connection(scorer)
        stalled.send(head, body[: len(body) // 2])
        status, reply = stalled.reply()
        assert status == 400
        assert "no more of the body came for 0.5 s" in reply["error"]["message"]
        assert stalled.socket.recv(10) == b""
        stalled.socket.close()
        assert len(client.score(*large, policy_version=0, projection=PROJECTION).problem_ids) == ROWS


def test_slow_senders_do_not_hold_up_the_compute_thread(start_scorer, run_id, large):
    scorer = start_scorer(QUEUE_SIZE="1", MAX_REQUESTS="20")
    ids, sketches = large
    with Client(scorer.url, run_id=run_id, retries=0) as client:
        client.refresh_validation(ids[:8], sketches[:8], policy_version=0, projection=PROJECTION)
        head, body = request_bytes(run_id, ids, sketches)
        slow = [Connection(scorer) for _ in range(8)]
        for each in slow:
            each.send(head, body[: len(body) * 3 // 4])
        for _ in range(3):
            client.score(ids[:100], sketches[:100], policy_version=0, projection=PROJECTION)
        for each in slow:
            each.socket.close()


def test_many_large_requests_leave_memory_as_it_was(start_scorer, run_id, large):
    scorer = start_scorer(fresh=True)
    process = psutil.Process(scorer.process.pid)
    with Client(scorer.url, run_id=run_id) as client:
        client.refresh_validation(large[0][:8], large[1][:8], policy_version=0, projection=PROJECTION)

        def send(count):
            for _ in range(count):
                client.score(*large, policy_version=0, projection=PROJECTION)
            return process.memory_info().rss

        before = send(10)
        assert send(30) < before + 2 * large[1].nbytes


def test_a_repeated_large_request_is_answered_from_the_store(scorer, run, large):
    ids, sketches = large
    with Client(scorer.url, run_id=run) as client:
        arguments = {"policy_version": 0, "projection": PROJECTION, "request_id": "again"}
        first = client.score(ids, sketches, **arguments)
        assert client.score(ids, sketches, **arguments) == first
        assert client.problem(ids[0]).times_scored == 1
        changed = sketches.copy()
        changed[-1, -1] += 1
        body = b"".join(
            bytes(p) for p in CallBuilder(run, None).score(ids, changed, 0, PROJECTION, request_id="again").parts
        )
        reply = httpx.post(
            f"{scorer.url}/score", content=body, headers={"Content-Type": "application/msgpack"}, timeout=120
        )
        assert reply.status_code == 409
        assert reply.json()["error"]["type"] == "request_id_reused"
        swapped = sketches[::-1].copy()
        body = b"".join(
            bytes(p) for p in CallBuilder(run, None).score(ids, swapped, 0, PROJECTION, request_id="again").parts
        )
        assert httpx.post(
            f"{scorer.url}/score", content=body, headers={"Content-Type": "application/msgpack"}, timeout=120
        ).status_code == 409  # fmt: skip
    assert msgpack.packb(first.to_map())
