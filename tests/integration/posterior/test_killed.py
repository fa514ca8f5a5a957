"""A scorer that dies between its commit and its reply: the retry is answered by its heir, and nothing counts twice."""

import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from rawhttp import wait_until

from gradalign import Client

IDS, SPEC = ["a", "b"], {"pass_rates": [0.5, 1.0], "rollouts": [8, 4], "policy_version": 3, "discount": 1.0}


class Gate:
    """Stands between a scorer and its store on a port of its own. Armed, it lets the next commit of beliefs through, and
    from then on no reply of the store.
    """

    def __init__(self, store: Path):
        self.store, self.armed, self.open = store, False, True
        self.listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.listening.getsockname()[1]}"

    def _accept(self):
        with suppress(OSError):
            while True:
                near = self.listening.accept()[0]
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self.store))
                for source, target, back in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._pass, args=(source, target, back), daemon=True).start()

    def _pass(self, source, target, back):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self.armed and not back and b"EVALSHA" in data and b":beliefs" in data:
                    self.open = False
                if self.open or not back:
                    target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def gate(valkey_url):
    made = Gate(Path(valkey_url.removeprefix("unix://")))
    yield made
    made.listening.close()


def test_what_was_committed_and_not_answered_counts_once(gate, start_scorer, scorer, raw_store, run_id):
    doomed = start_scorer(redis_url=gate.url)
    key = f"gradalign:{{{run_id}}}:beliefs"
    with Client(doomed.url, run_id=run_id, retries=0, timeout=120) as client:
        client.score(IDS, **SPEC, request_id="first")
        assert raw_store.hlen(key) == 2
        before = raw_store.hget(key, "a")
    errors = []

    def send():
        try:
            # Both scorers; the second has the same store, without the gate.
            with Client([doomed.url, scorer.url], run_id=run_id, timeout=120) as both:
                reply = both.score(IDS, **SPEC, request_id="second")
                assert reply.request_id == "second"
        except BaseException as error:
            errors.append(error)

    gate.armed = True
    sender = threading.Thread(target=send)
    sender.start()
    wait_until(lambda: raw_store.hget(key, "a") != before)
    doomed.kill()
    assert not gate.open
    sender.join(120)
    assert not sender.is_alive()
    assert errors == []
    with Client(scorer.url, run_id=run_id) as client:
        assert [client.problem(i).belief for i in IDS] == [[1 + 8.0, 1 + 8.0], [1 + 8.0, 1.0]]
        assert [client.problem(i).times_scored for i in IDS] == [2, 2]
        assert client.run().rounds == 2
        picks = [client.select(1, policy_version=3, seed=s, cooldown=0).selected for s in range(4)]
    with Client(scorer.url, run_id=run_id) as client:
        again = [client.select(1, policy_version=3, seed=s, cooldown=0).selected for s in range(4)]
    assert again == picks
