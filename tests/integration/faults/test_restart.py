"""Orderly ends: a rolling restart under load that no trainer notices, and SIGTERM with clients that hold on."""

import json
import select
import shutil
import signal
import subprocess
import threading

import numpy as np
import pytest
from rawhttp import head, read_reply, score_message, small_window, wait_until

from gradalign import Client, Projection, UnavailableError


class Trainer(threading.Thread):
    """Scores, refreshes and selects in a run of its own with request ids; whatever reaches it as an error is kept."""

    def __init__(self, urls, run_id, sketches, projection):
        super().__init__(daemon=True)
        self.client = Client(urls, run_id=run_id, timeout=120)
        self.sketches, self.projection = sketches, projection
        self.ids = [f"p{i}" for i in range(len(sketches))]
        self.scored = self.refreshed = self.picked = 0
        self.enough, self.error = threading.Event(), None

    def run(self):
        try:
            while not self.enough.is_set():
                self.step()
        except Exception as error:
            self.error = error

    def step(self):
        spec = {"policy_version": self.scored, "projection": self.projection}
        if self.scored % 5 == 0:
            self.client.refresh_validation(self.ids, self.sketches, **spec)
            self.refreshed += 1
        assert len(self.client.score(self.ids, self.sketches, **spec).problem_ids) == len(self.ids)
        self.scored += 1
        if self.scored % 3 == 0:
            self.picked += len(self.client.select(2, policy_version=self.scored).selected)

    def faults(self):
        """What the store holds otherwise than this trainer counted."""
        self.enough.set()
        self.join(120)
        with self.client as client:
            assert self.error is None, self.error
            states = [client.problem(i) for i in self.ids]
            assert {state.times_scored for state in states} == {self.scored}
            assert sum(state.times_selected for state in states) == self.picked
            assert client.run().validation_version == self.refreshed


def test_a_rolling_restart_of_two_scorers_reaches_no_trainer(start_scorer, run_id, sketches, projection):
    scorers = [start_scorer("--drain-seconds", "0.3") for _ in range(2)]
    ports = [str(scorer.address[1]) for scorer in scorers]
    urls = [scorer.url for scorer in scorers]
    trainers = [Trainer(urls[i % 2 :] + urls[: i % 2], f"{run_id}-{i}", sketches, projection) for i in range(4)]
    for trainer in trainers:
        trainer.start()
    for number in (0, 1, 0, 1):
        before = [trainer.scored for trainer in trainers]
        scorers[number].process.send_signal(signal.SIGTERM)
        assert scorers[number].process.wait(timeout=120) == 0
        scorers[number].folder.cleanup()
        scorers[number] = start_scorer("--port", ports[number], "--drain-seconds", "0.3")
        with scorers[number].http() as http:
            wait_until(lambda h=http: h.get("/readyz").status_code == 200)
        wait_until(lambda b=before: all(t.error or t.scored > n + 3 for t, n in zip(trainers, b, strict=True)))
    for trainer in trainers:
        trainer.faults()


def test_one_url_rides_out_a_restart_by_its_retries(start_scorer, run_id, sketches, projection):
    """The form with a single URL: a scorer that is started again within the retries is not noticed either."""
    scorer = start_scorer("--drain-seconds", "0")
    trainer = Trainer(scorer.url, run_id, sketches, projection)
    with trainer.client:
        trainer.client.health()
    trainer.client = Client(scorer.url, run_id=run_id, timeout=120, retries=30)
    trainer.start()
    wait_until(lambda: trainer.error or trainer.scored > 3)
    scorer.process.send_signal(signal.SIGTERM)
    assert scorer.process.wait(timeout=120) == 0
    start_scorer("--port", str(scorer.address[1]))
    at = trainer.scored
    wait_until(lambda: trainer.error or trainer.scored > at + 3)
    trainer.faults()


def test_sigterm_drains_and_ends_within_its_grace_whoever_holds_on(start_scorer, run_id, projection):
    """A stalled sender, a slow reader and an idle connection are attached; a request that is on its way is answered."""
    # Were one of them waited for, the end would come when a body may, in an hour.
    scorer = start_scorer(DRAIN_SECONDS="0.5", GRACE_SECONDS="6", BODY_SECONDS="3600")
    ids = [f"p{i:04}-" + "x" * 240 for i in range(4000)]
    sketches = np.ones((4000, projection.dim), np.float16)
    with Client(scorer.url, run_id=run_id, retries=0) as client, scorer.http() as http:
        client.refresh_validation(ids[:8], sketches[:8], policy_version=0, projection=projection)
        client.score(ids, sketches, policy_version=0, projection=projection)
        stalled, late, idle = (scorer.connect() for _ in range(3))
        reader = small_window(scorer.address)
        stalled.sendall(head("/score", 5_000_000) + b"x" * 1000)
        reader.sendall(f"GET /runs/{run_id}/problems?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 20)
        top, body = score_message(run_id, ids[:100], sketches[:100], projection, request_id="late")
        late.sendall(top + body[:-10])
        wait_until(lambda: http.get("/health").json()["admitted_requests"] == 2)
        scorer.process.send_signal(signal.SIGTERM)
        wait_until(lambda: http.get("/readyz").status_code == 503)
        wait_until(lambda: refuses(client))  # behind the drain no connection is accepted
        late.sendall(body[-10:])
        status, headers, reply = read_reply(late)
        assert (status, headers["connection"]) == (200, "close")
        assert len(json.loads(reply)["problem_ids"]) == 100
        scorer.process.wait(timeout=120)
        assert scorer.process.returncode == 0
        for raw in (stalled, late, idle, reader):
            raw.close()
    log = scorer.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 300 :][:5000]
    heir = start_scorer()
    with Client(heir.url, run_id=run_id) as client:
        assert client.run().rounds == 3
        assert client.problem(ids[0]).times_scored == 2


def refuses(client):
    """Whether a new connection is refused."""
    try:
        client.health()
    except UnavailableError:
        return True
    return False


def test_what_is_computed_when_sigterm_comes_is_answered(start_scorer, run_id, sketches, problem_ids, projection):
    scorer = start_scorer("--drain-seconds", "0")
    with Client(scorer.url, run_id=run_id) as client:
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
    ids = [f"p{i}" for i in range(4000)]
    wide = np.ones((4000, projection.dim), np.float16)
    connections = [scorer.connect() for _ in range(6)]
    for raw in connections:
        raw.sendall(b"".join(score_message(run_id, ids, wide, projection)))
    with scorer.http() as http:
        # One that is answered already was admitted too.
        wait_until(
            lambda: select.select(connections, [], [], 0)[0] or http.get("/health").json()["admitted_requests"] >= 1
        )
        scorer.process.send_signal(signal.SIGTERM)
    statuses = []
    for raw in connections:
        try:
            statuses.append(read_reply(raw)[0])
        except (AssertionError, ConnectionError):
            statuses.append(None)  # it was not admitted yet: closed without a word, to be sent again
        raw.close()
    assert scorer.process.wait(timeout=120) == 0
    assert statuses.count(200) >= 1
    heir = start_scorer()
    with Client(heir.url, run_id=run_id) as client:
        assert client.problem("p3999").times_scored == statuses.count(200)


def test_more_work_than_the_grace_allows_is_cut_off_and_nothing_of_it_is_half_stored(start_scorer, run_id):
    """Six computations of seconds each, and a grace of two."""
    wide = Projection(dim=2048, seed=0, parameters="ab" * 32)
    ids = [f"p{i}" for i in range(4000)]
    sketches = np.random.default_rng(0).standard_normal((4000, wide.dim)).astype(np.float16)
    scorer = start_scorer("--drain-seconds", "0", "--grace-seconds", "2")
    with Client(scorer.url, run_id=run_id) as client:
        client.refresh_validation(ids[:8], sketches[:8], policy_version=0, projection=wide)
    answered, lost = [], []

    def train():
        with Client(scorer.url, run_id=run_id, retries=0, timeout=120) as own:
            try:
                answered.append(own.score(ids, sketches, policy_version=0, projection=wide, strategy="diverse"))
            except UnavailableError as error:
                lost.append(error)

    trainers = [threading.Thread(target=train) for _ in range(6)]
    for trainer in trainers:
        trainer.start()
    with scorer.http() as http:
        wait_until(lambda: http.get("/health").json()["admitted_requests"] + len(answered) >= 6)
    scorer.process.send_signal(signal.SIGTERM)
    assert scorer.process.wait(timeout=120) == 0
    for trainer in trainers:
        trainer.join(120)
    assert len(answered) + len(lost) == 6
    assert lost  # all six would be answered, were they waited for
    heir = start_scorer()
    with Client(heir.url, run_id=run_id) as client:
        stored = client.run().rounds - 1
        assert len(answered) <= stored <= 6
        problems = client.problems(limit=1000).problems
        assert {problem.times_scored for problem in problems} <= {stored}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_idle_clients_that_speak_tls_do_not_hold_up_the_end(
    start_scorer, tmp_path, run_id, problem_ids, sketches, projection
):
    """A connection that is kept alive does not look for the goodbye that TLS waits half a minute for."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command = ["openssl", "req", *kind, "-keyout", str(key), "-out", str(cert), *subject]
    subprocess.run(command, check=True, capture_output=True)
    scorer = start_scorer("--drain-seconds", "0", "--tls-cert", str(cert), "--tls-key", str(key))
    with Client(scorer.url, run_id=run_id, ca_file=cert) as client:
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        scorer.process.send_signal(signal.SIGTERM)
        assert scorer.process.wait(timeout=25) == 0
    log = scorer.log.read_text()
    assert "hung up" not in log
    assert "Traceback" not in log
