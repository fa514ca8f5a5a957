"""A parent that closed stdin, as some supervisors do: the first socket is descriptor 0 then."""

import signal
import socket
import subprocess
import sys
import time

import httpx
from rawhttp import head, wait_until


def test_a_listener_is_closed_at_the_end_though_stdin_was_closed(tmp_path, valkey_url):
    port_file = tmp_path / "url"
    flags = ["--port", "0", "--port-file", str(port_file), "--redis-url", valkey_url, "--drain-seconds", "0"]
    command = [sys.executable, "-m", "gradalign", "serve", *flags, "--grace-seconds", "30"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["sh", "-c", 'exec "$@" <&-', "sh", *command], stdout=log, stderr=log)
    try:
        wait_until(port_file.exists)
        url = httpx.URL(port_file.read_text().strip())
        with httpx.Client(base_url=url, timeout=120) as client:
            client.get("/health").raise_for_status()
        with stalled(url):
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            wait_until(lambda: refuses(url))
            assert time.monotonic() - began < 15  # the sender is waited for, and holds nobody else
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()


def stalled(url):
    """A connection that sends a part of its request."""
    raw = socket.create_connection((url.host, url.port), timeout=120)
    raw.sendall(head("/score", 5_000_000) + b"x" * 1000)
    return raw


def refuses(url):
    """Whether a new connection is refused; one that is taken and not answered is none."""
    try:
        httpx.get(url.join("/health"), timeout=1)
    except httpx.ConnectError:
        return True
    except httpx.HTTPError:
        return False
    return False
