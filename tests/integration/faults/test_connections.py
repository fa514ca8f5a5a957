"""Clients that do not take their replies, that break the connection while one is written, and that are too many.

The kernel alone takes up to 4 MiB of a reply that nobody reads, so replies here are pages asked for all at once.
"""

import json
import threading
import time

import numpy as np
import psutil
import pytest
from rawhttp import head, read_reply, reset, score_message, small_window, wait_until

from gradalign import Client

PROBLEMS, PAGES = 4000, 20
MIB = 1 << 20


@pytest.fixture(scope="module")
def wide(projection):
    """A request whose reply is large: 4,000 problems with long ids."""
    ids = [f"problem-{i:04}-" + "x" * 230 for i in range(PROBLEMS)]
    return ids, np.random.default_rng(0).standard_normal((PROBLEMS, projection.dim)).astype(np.float16)


@pytest.fixture(scope="module")
def impatient(scorer, valkey_url):
    """A scorer that gives a client a second and a half to take more, and holds 2 MiB of replies that are not taken."""
    process = type(scorer)(
        valkey_url, BODY_SECONDS="1.5", MAX_BODY_BYTES=str(8 * MIB), MAX_ADMITTED_BYTES=str(16 * MIB)
    )
    yield process
    process.end()


@pytest.fixture
def run(impatient, run_id, wide, projection):
    with Client(impatient.url, run_id=run_id) as client:
        client.refresh_validation(wide[0][:8], wide[1][:8], policy_version=0, projection=projection)
    return run_id


def pages(run_id):
    """Twenty requests in one go, whose replies are 8 MiB."""
    return f"GET /runs/{run_id}/problems?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n".encode() * PAGES


def drain(raw):
    """What is still to be had of a connection that the scorer gave up."""
    received = 0
    try:
        while piece := raw.recv(1 << 16):
            received += len(piece)
    except ConnectionError:
        pass
    return received


def score_twice(client, run, wide, projection):
    ranking = client.score(*wide, policy_version=0, projection=projection, request_id="late")
    assert len(ranking.problem_ids) == PROBLEMS
    assert client.problem(wide[0][0]).times_scored == 1


def test_a_client_that_takes_nothing_of_its_reply_is_given_up(impatient, run, wide, projection):
    with small_window(impatient.address) as raw, Client(impatient.url, run_id=run) as client:
        raw.sendall(b"".join(score_message(run, *wide, projection, request_id="late")) + pages(run))
        wait_until(lambda: "took none for 1.5 s" in impatient.log.read_text())
        assert drain(raw) < 6 * MIB
        score_twice(client, run, wide, projection)


def test_a_client_that_is_slow_but_goes_on_gets_all_of_its_reply(impatient, run, wide, projection):
    with small_window(impatient.address, 1 << 16) as raw, Client(impatient.url, run_id=run) as client:
        client.score(*wide, policy_version=0, projection=projection)
        raw.sendall(pages(run))
        slow = SlowReader(raw)
        for _ in range(PAGES):
            status, _, body = read_reply(slow)
            assert (status, len(json.loads(body)["problems"])) == (200, 1000)
    assert slow.seconds > 3.0  # twice what a client may take nothing for


class SlowReader:
    """Takes the first 4 MiB in small pieces with pauses."""

    def __init__(self, raw):
        self.raw, self.began, self.seconds, self.taken, self.rest = raw, time.monotonic(), 0.0, 0, b""

    def recv(self, size):
        if self.taken < 4 * MIB:
            time.sleep(0.07)
            self.seconds = time.monotonic() - self.began
        received = self.raw.recv(size)
        self.taken += len(received)
        return received


def test_many_slow_readers_leave_memory_bounded_and_others_served(start_scorer, run_id, wide, projection):
    """Forty clients that leave selections of 3 MiB each: the last thirty of them held would be 90 MiB."""
    limits = {"MAX_BODY_BYTES": str(8 * MIB), "MAX_ADMITTED_BYTES": str(16 * MIB)}
    scorer = start_scorer(fresh=True, BODY_SECONDS="3600", **limits)
    process = psutil.Process(scorer.process.pid)
    with Client(scorer.url, run_id=run_id, timeout=120) as client:
        client.refresh_validation(wide[0][:8], wide[1][:8], policy_version=0, projection=projection)
        for part in range(3):
            client.score([f"{part}-{i}" for i in wide[0]], wide[1], policy_version=0, projection=projection)
        picked = client.select(3 * PROBLEMS, policy_version=0, request_id="all")
        assert len(picked.selected) == 3 * PROBLEMS
        body = json.dumps(
            {"run_id": run_id, "policy_version": 0, "count": 3 * PROBLEMS, "request_id": "other"}
        ).encode()
        message = head("/select", len(body), "application/json") + body
        sizes, readers = [], []
        try:
            for number in range(40):
                raw = small_window(scorer.address)
                readers.append(raw)
                raw.sendall(3 * message)
                wait_until(lambda n=number: scorer.log.read_text().count("route=/select") > n + 1)
                assert client.run().run_id == run_id  # it waits for none of them, which would take an hour
                sizes.append(process.memory_info().rss)
            wait_until(lambda: scorer.log.read_text().count("others need the memory") > 25)
            assert max(sizes) < sizes[9] + 45 * MIB  # the allocator's own growth is up to 40 on a busy machine
        finally:
            for raw in readers:
                raw.close()
        assert len(client.score(*wide, policy_version=1, projection=projection).problem_ids) == PROBLEMS


@pytest.mark.parametrize("taken", [0, 1, 5000, 2_000_000])
def test_a_connection_reset_while_its_reply_is_written_harms_nobody(impatient, run, wide, projection, taken):
    with Client(impatient.url, run_id=run) as client, impatient.http() as http:
        for number in range(3):
            raw = small_window(impatient.address, 1 << 16)
            raw.sendall(b"".join(score_message(run, *wide, projection, request_id=f"r{number}")) + pages(run))
            received = 0
            while received < taken:
                piece = raw.recv(min(1 << 16, taken - received))
                assert piece, "it was given up"
                received += len(piece)
            wait_until(lambda n=number: client.run().rounds == n + 2)
            reset(raw)
            again = client.score(*wide, policy_version=0, projection=projection, request_id=f"r{number}")
            assert len(again.problem_ids) == PROBLEMS
        assert client.problem(wide[0][0]).times_scored == 3
        assert client.run().rounds == 4
        wait_until(lambda: http.get("/health").json()["admitted_requests"] == 0)
    log = impatient.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 300 :][:6000]


def test_a_full_scorer_answers_429_before_it_reads_and_every_trainer_gets_through(
    start_scorer, run_id, wide, projection
):
    limits = {"MAX_BODY_BYTES": str(64 * MIB), "MAX_ADMITTED_BYTES": str(128 * MIB)}
    small = start_scorer(fresh=True, MAX_REQUESTS="2", **limits)
    ids, sketches = wide
    with Client(small.url, run_id=run_id) as client, small.http() as http:
        client.refresh_validation(ids[:8], sketches[:8], policy_version=0, projection=projection)
        before = psutil.Process(small.process.pid).memory_info().rss
        holders = [small.connect() for _ in range(2)]
        for raw in holders:
            raw.sendall(head("/score", 1000) + b"x")
        wait_until(lambda: http.get("/health").json()["admitted_requests"] == 2)
        for _ in range(20):
            with small.connect() as raw:
                raw.sendall(head("/score", 64 * MIB))  # and nothing of the body
                status, headers, body = read_reply(raw)
                assert (status, headers["retry-after"], headers["connection"]) == (429, "1", "close")
                assert "GRADALIGN_MAX_REQUESTS" in json.loads(body)["error"]["message"]
        assert psutil.Process(small.process.pid).memory_info().rss < before + 8 * MIB
        for raw in holders:
            raw.close()
        errors = []

        def train():
            try:
                with Client(small.url, run_id=run_id, retries=60) as own:
                    for _ in range(5):
                        own.score(ids, sketches, policy_version=0, projection=projection)
            except Exception as error:
                errors.append(error)

        trainers = [threading.Thread(target=train) for _ in range(8)]  # four times what it takes at once
        for trainer in trainers:
            trainer.start()
        for trainer in trainers:
            trainer.join(120)
        assert errors == []
        assert client.problem(ids[0]).times_scored == 40
        refused = next(line for line in http.get("/metrics").text.splitlines() if '"overloaded"' in line)
        assert float(refused.split()[-1]) > 20
