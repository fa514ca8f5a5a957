"""Raw requests for the fault tests: whole HTTP messages as bytes, sockets that misbehave, and waiting with a deadline."""

import socket
import time

from gradalign.client.calls import CallBuilder

RESET = b"\x01\0\0\0\0\0\0\0"  # SO_LINGER of no seconds: closing resets the connection


def score_message(run_id, ids, sketches, projection, *, version=0, **more):
    """A whole POST /score: its head and its body."""
    call = CallBuilder(run_id, None).score(ids, sketches, version, projection, **more)
    body = b"".join(bytes(part) for part in call.parts)
    return head("/score", len(body), call.content_type), body


def head(path, length, kind="application/msgpack"):
    """Request line and headers of a POST, the last line's end included."""
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()


def small_window(address, size=4096):
    """A connection whose kernel takes little before its reader does."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    raw.settimeout(120)
    raw.connect(address)
    return raw


def reset(raw):
    """Close a connection by a reset instead of a farewell."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    raw.close()


def read_reply(raw):
    """Status, headers and body of the next reply; bytes behind it are kept in `raw.rest` where there is one."""
    received = getattr(raw, "rest", b"")
    while b"\r\n\r\n" not in received:
        received += _some(raw)
    top, _, body = received.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    while len(body) < int(headers["content-length"]):
        body += _some(raw)
    length = int(headers["content-length"])
    if length < len(body):
        raw.rest = body[length:]
    elif hasattr(raw, "rest"):
        raw.rest = b""
    return int(lines[0].split()[1]), headers, body[:length]


def _some(raw):
    received = raw.recv(1 << 16)
    assert received, "the connection was closed"
    return received


def wait_until(condition, seconds=120.0):
    """Return once the condition holds; fail where it does not in a time that is long for the busiest machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
