"""A store that cannot write: read-only, or on a disk that is full under the embedded server."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import redis
from rawhttp import wait_until

from gradalign import Client, Projection, Unavailable
from gradalign_scorer.store import EmbeddedServer

WIDE = Projection(dim=8192, seed=0, parameters="ab" * 32)
MIB = 1 << 20


def test_a_read_only_store_is_a_503_that_says_so_and_writes_again_later(
    start_scorer, tmp_path, run_id, problem_ids, sketches, projection
):
    with EmbeddedServer(tmp_path / "valkey") as valkey:
        scorer = start_scorer(redis_url=valkey.url)
        raw = redis.Redis(unix_socket_path=valkey.url.removeprefix("unix://"))
        with raw, scorer.http() as http, Client(scorer.url, run_id=run_id, retries=0) as client:
            client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
            first = client.score(problem_ids, sketches, policy_version=0, projection=projection)
            client.snapshot("before")
            raw.replicaof("127.0.0.1", 1)
            arguments = {"policy_version": 1, "projection": projection, "request_id": "refused"}
            for write in (
                lambda: client.score(problem_ids, sketches, **arguments),
                lambda: client.refresh_validation(problem_ids, sketches, **arguments),
                lambda: client.select(2, policy_version=1),
                lambda: client.snapshot("after"),
                lambda: client.restore("before"),
                client.delete_run,
            ):
                with pytest.raises(Unavailable, match="read-only replica: point GRADALIGN_REDIS_URL") as caught:
                    write()
                assert caught.value.retry_after >= 1
            assert client.run().policy_version == 0  # reading goes on
            assert client.problem("p0").times_scored == 1
            assert http.get("/livez").status_code == 200
            raw.replicaof("NO", "ONE")
            again = client.score(problem_ids, sketches, **arguments)
            assert (again.policy_version, again.alignments) == (1, first.alignments)
            assert client.run().rounds == 3


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m,mode=0700", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Writer(threading.Thread):
    """Refreshes validations of 32 KiB until told to stop, each until it is acknowledged, and keeps their vectors."""

    def __init__(self, url, number):
        super().__init__(daemon=True)
        self.client = Client(url, run_id=f"writer-{number}", retries=0, timeout=120)
        self.rng, self.acknowledged, self.refused = np.random.default_rng(number), 0, []
        self.enough, self.error = threading.Event(), None

    def run(self):
        try:
            while not self.enough.is_set():
                self.write()
        except Exception as error:
            self.error = error

    def write(self):
        row = self.rng.standard_normal((1, WIDE.dim)).astype(np.float32)
        request_id = f"r{self.acknowledged}"
        while True:
            try:
                reply = self.client.refresh_validation(
                    ["p"], row, policy_version=0, projection=WIDE, request_id=request_id
                )
            except Unavailable as error:
                self.refused.append(error)
                if self.enough.wait(0.05):
                    return
            else:
                assert reply.validation_version == self.acknowledged + 1
                self.acknowledged += 1
                return


def store_of(scorer):
    return next(p for p in psutil.Process(scorer.process.pid).children(recursive=True) if "valkey" in p.name())


def test_a_full_disk_is_a_503_loses_nothing_and_room_ends_it(start_scorer, small_disk):
    scorer = start_scorer("--data-dir", str(small_disk), redis_url=None)
    writers = [Writer(scorer.url, number) for number in range(3)]
    with scorer.http() as http:
        ballast = small_disk / "ballast"
        fill(ballast, leave=2 * MIB)
        for writer in writers:
            writer.start()
        wait_until(lambda: all(writer.refused for writer in writers))
        error = writers[0].refused[0]
        assert "cannot persist to disk: free space on its volume" in error.message
        assert error.retry_after >= 1
        assert http.get("/livez").status_code == 200
        for writer in writers:
            assert writer.client.run().validation_version in (writer.acknowledged, writer.acknowledged + 1)
        ballast.unlink()
        counts = [writer.acknowledged for writer in writers]
        wait_until(lambda: all(writer.acknowledged > n + 3 for writer, n in zip(writers, counts, strict=True)))
        for writer in writers:
            writer.enough.set()
        for writer in writers:
            writer.join(120)
            assert writer.error is None, writer.error
        os.kill(store_of(scorer).pid, signal.SIGKILL)  # what is left is what was on the disk
        wait_until(lambda: http.get("/readyz").status_code == 200)
        for writer in writers:
            with writer.client as client:
                assert client.run().validation_version == client.run().rounds == writer.acknowledged


def test_a_store_that_dies_on_a_full_disk_still_reads_and_writes_when_there_is_room(start_scorer, small_disk):
    scorer = start_scorer("--data-dir", str(small_disk), redis_url=None)
    writer = Writer(scorer.url, 0)
    with scorer.http() as http, writer.client as client:
        writer.write()
        ballast = small_disk / "ballast"
        fill(ballast, leave=0)
        dead = store_of(scorer)
        dead.kill()
        wait_until(lambda: not dead.is_running() and http.get("/readyz").status_code == 200)
        assert client.run().validation_version == 1
        writer.start()
        wait_until(lambda: any("cannot persist to disk" in str(error) for error in writer.refused))
        assert client.run().validation_version >= 1
        ballast.unlink()
        refused_at = writer.acknowledged
        wait_until(lambda: writer.acknowledged > refused_at + 3)
        writer.enough.set()
        writer.join(120)
        assert writer.error is None, writer.error
        assert client.run().validation_version == client.run().rounds == writer.acknowledged


def test_a_scorer_does_not_start_on_a_full_disk_and_says_why(serve, small_disk):
    fill(small_disk / "ballast", leave=0)
    done = serve("--port", "0", "--data-dir", str(small_disk / "data"))
    assert done.returncode == 2
    assert "GRADALIGN_DATA_DIR (--data-dir)" in done.stderr
    assert "Traceback" not in done.stderr


def fill(ballast: Path, *, leave):
    """Fill a disk but for some bytes."""
    room = os.statvfs(ballast.parent)
    with ballast.open("wb", buffering=0) as file:
        try:
            for _ in range((room.f_bavail * room.f_frsize - leave) >> 12):
                file.write(bytes(1 << 12))
        except OSError:
            assert leave == 0
