"""A scorer on IPv6: what it listens on, what it calls itself, who may reach it without a key, and its health check."""

import socket

import numpy as np
import pytest

from gradalign import Client, Projection
from gradalign_scorer.healthcheck import fault

PROJECTION = Projection(dim=4, seed=0, parameters="ab" * 32)


def ipv6_works():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not ipv6_works(), reason="this machine has no IPv6 loopback")


def port_of(url):
    return url.rpartition(":")[2]


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_loopback_needs_no_key_and_has_a_url_that_clients_take(start_scorer, host):
    process = start_scorer("--host", host)
    assert process.url == f"http://[::1]:{port_of(process.url)}"
    assert f"serving on {process.url}" in process.log.read_text()
    with Client(process.url, run_id=f"ipv6-{len(host)}", retries=0) as client:
        spec = {"policy_version": 0, "projection": PROJECTION}
        client.refresh_validation(["trusted"], np.eye(4, dtype=np.float32)[:1], **spec)
        assert client.score(["a", "b"], np.eye(4, dtype=np.float32)[[1, 0]], select=1, **spec).selected == ["b"]
    assert fault({"GRADALIGN_HOST": host, "GRADALIGN_PORT": port_of(process.url)}) is None


def test_every_address_is_ipv4_too(start_scorer):
    process = start_scorer("--host", "::", API_KEY="key")
    for host in ("127.0.0.1", "[::1]"):
        with Client(f"http://{host}:{port_of(process.url)}", run_id="r", api_key="key", retries=0) as client:
            assert client.runs() is not None
    for host in ("::", "0.0.0.0"):
        assert fault({"GRADALIGN_HOST": host, "GRADALIGN_PORT": port_of(process.url)}) is None


def test_loopback_of_ipv4_may_be_written_as_ipv6(start_scorer):
    process = start_scorer("--host", "::ffff:127.0.0.1")
    assert fault({"GRADALIGN_PORT": port_of(process.url)}) is None


def test_an_address_that_is_taken_is_told_in_brackets(serve):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        done = serve("--host", "::1", "--port", str(port), "--redis-url", "redis://127.0.0.1:1")
    assert done.returncode == 2
    assert f"cannot listen on [::1]:{port} (" in done.stderr
