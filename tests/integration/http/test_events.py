"""The events of a run, over the wire: live, resumed, at another replica, after a restore, and to an orderly end."""

import json
import signal
import threading
import time
from contextlib import contextmanager

import httpx
import pytest

from gradalign import Client


@pytest.fixture
def run(scorer, run_id, problem_ids, sketches, projection):
    """A run of three rounds."""
    with Client(scorer.url, run_id=run_id, retries=0) as client:
        client.refresh_validation(problem_ids, sketches, policy_version=1, projection=projection)
        for version in (1, 2):
            client.score(problem_ids, sketches, policy_version=version, projection=projection, select=2)
        yield client


@contextmanager
def watching(process, run_id, **headers):
    """An iterator over `(event, id, data)`, the comments as `("", None, text)`."""
    with (
        process.http() as http,
        http.stream(
            "GET", f"/runs/{run_id}/events", headers={k.replace("_", "-"): v for k, v in headers.items()}
        ) as reply,
    ):
        assert reply.status_code == 200
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        assert reply.headers["Cache-Control"] == "no-store"

        def events():
            fields = {}
            for line in reply.iter_lines():
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = value.removeprefix(" ")
                elif "event" in fields:
                    yield fields["event"], fields.get("id"), json.loads(fields["data"])
                    fields = {}

        yield events()


def numbers(events, count):
    return [next(events)[2]["round"] for _ in range(count)]


def test_a_round_is_told_as_it_is_committed(scorer, run, problem_ids, sketches, projection):
    with watching(scorer, run.run_id) as events:
        thread = threading.Timer(
            0.3, lambda: run.score(problem_ids, sketches, policy_version=3, projection=projection, select=3)
        )
        thread.start()
        started = time.monotonic()
        name, place, data = next(events)
        assert time.monotonic() - started < 60
        thread.join()
    (record,) = run.rounds(after=3)
    assert (name, data) == ("round", record.to_map())
    assert place == f"4-{int(record.at * 1000)}"


def test_it_is_taken_up_where_it_broke_at_any_replica(scorer, start_scorer, run):
    with watching(scorer, run.run_id, Last_Event_ID="1") as events:
        name, place, data = next(events)
        assert (name, data["round"]) == ("round", 2)
    with watching(start_scorer(), run.run_id, Last_Event_ID=place) as events:
        assert numbers(events, 1) == [3]


def test_a_restored_run_tells_to_start_again(scorer, run, problem_ids, sketches, projection):
    run.snapshot("early")
    run.score(problem_ids, sketches, policy_version=3, projection=projection)
    last = run.rounds(after=3)[0]
    run.restore("early")
    for version in (3, 4):
        run.score(problem_ids, sketches, policy_version=version, projection=projection)
    # Its number is in use again, so only its time tells that it was another round.
    with watching(scorer, run.run_id, Last_Event_ID=f"4-{int(last.at * 1000)}") as events:
        name, place, _ = next(events)
        assert (name, place.split("-")[0]) == ("restart", "6")
        run.select(2, policy_version=4)
        assert numbers(events, 1) == [7]
    with watching(scorer, run.run_id, Last_Event_ID="1000") as events:
        assert next(events)[0] == "restart"


def test_a_deleted_run_ends_it(scorer, run):
    with watching(scorer, run.run_id) as events:
        run.delete_run()
        assert [name for name, *_ in events] == ["gone"]
    with scorer.http() as http:
        assert http.get(f"/runs/{run.run_id}/events").status_code == 404


@pytest.mark.parametrize("place", ["x", "-1", "1-", "9" * 16, "1-2-3", "٣"])
def test_a_place_that_is_none_is_refused(scorer, run, place):
    with scorer.http() as http:
        reply = http.get(f"/runs/{run.run_id}/events", params={"after": place})
    assert (reply.status_code, reply.json()["error"]["param"]) == (422, "Last-Event-ID")


def test_only_so_many_watch_at_once(start_scorer, run):
    process = start_scorer(MAX_STREAMS="2")
    with watching(process, run.run_id), watching(process, run.run_id), process.http() as http:
        deadline = time.monotonic() + 120
        while (reply := http.get(f"/runs/{run.run_id}/events", headers={"Connection": "close"})).status_code == 200:
            assert time.monotonic() < deadline
        assert reply.status_code == 429
        assert "GRADALIGN_MAX_STREAMS" in reply.json()["error"]["message"]
        assert int(reply.headers["Retry-After"]) >= 1
    with process.http() as http:
        deadline = time.monotonic() + 120
        while True:  # a closed one gives its place back
            with http.stream("GET", f"/runs/{run.run_id}/events") as reply:
                if reply.status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_scorer_that_ends_ends_its_streams(start_scorer, run, number):
    process = start_scorer("--grace-seconds", "3600")
    with watching(process, run.run_id) as events:
        process.process.send_signal(number)
        assert list(events) == []  # a whole reply, not a broken one
    assert process.process.wait(timeout=120) == 0  # without its grace having passed


def test_a_stream_outlives_its_store(start_scorer, run_id, tmp_path, problem_ids, sketches, projection):
    from gradalign_scorer.store import EmbeddedServer

    with EmbeddedServer(tmp_path) as server:
        process = start_scorer(redis_url=server.url)
        with Client(process.url, run_id=run_id) as client:
            client.refresh_validation(problem_ids, sketches, policy_version=1, projection=projection)
        lines = httpx.stream("GET", f"{process.url}/runs/{run_id}/events", timeout=120)
        reply = lines.__enter__()
        assert reply.status_code == 200
    with EmbeddedServer(tmp_path), Client(process.url, run_id=run_id) as client:
        client.score(problem_ids, sketches, policy_version=1, projection=projection)
        assert any("event: round" in line for line in reply.iter_lines())
        lines.__exit__(None, None, None)


def test_warnings_come_with_the_run(scorer, run, problem_ids, sketches, projection):
    assert not {"silent", "validation_old", "rejected", "no_signal"} & {w.kind for w in run.run().warnings}
    silent = sketches.copy()
    silent[:6] = 0
    for _ in range(3):
        run.score(problem_ids, silent, policy_version=60, projection=projection)
    warnings = {w.kind: w.message for w in run.run().warnings}
    assert warnings["validation_old"] == "validation is 59 policy versions old"
    assert warnings["no_signal"] == "45% of the problems had no signal"
    listed = next(state for state in run.runs() if state.run_id == run.run_id)
    assert listed.warnings == run.run().warnings
