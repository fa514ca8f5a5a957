"""Sends a real scorer wrong requests of many kinds: no 5xx but 503, no hang, no growth, and good ones still work.

    python tests/bench/fuzz.py [--requests N] [--seed N]

Half of them are structured (a valid request with a key replaced by a value of another kind, in msgpack and in JSON, any
route, any query), half are bytes (a valid body flipped, cut, doubled or spliced, and wrong headers). The exit status is 1
where a reply was a 5xx other than 503, a reply did not come within 10 s, or memory grew by more than a tenth.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil

from gradalign import Client, Projection, SketchMatrix

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from scorers import ScorerProcess

PROJECTION = Projection(dim=8, seed=0, parameters="ab" * 32)
SECONDS = 10.0
STRANGE: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**53, 2**63 - 1, 2**64 - 1, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", "p0",
    "x" * 300,
    "a\0b", "\ud800", "../..", "{run}", "*", [], [[]], [[[[[]]]]], [None], ["p0", "p0"], [1] * 5000, [1e400], {}, {"a": {}},
    b"",
    b"\xff" * 50, "cosine", "float16", {"id": 1},
]  # fmt: skip
ROUTES = [
    "/score", "/refresh_validation", "/select", "/v1/score", "/runs", "/runs/fuzz", "/runs/fuzz/problems",
    "/runs/fuzz/rounds",
    "/runs/fuzz/problems/p0", "/runs/fuzz/snapshots/s", "/runs/fuzz/snapshots/s/restore", "/runs/nobody", "/livez",
    "/readyz",
    "/health", "/metrics", "/docs", "/openapi.json", "/", "/nowhere", "/runs/%2e%2e", "/runs/%00", "/runs/" + "a" * 500,
]  # fmt: skip
METHODS = ["POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]
QUERIES = [
    "",
    "?limit=-1",
    "?limit=99999999999999999999",
    "?cursor=x",
    "?cursor=%ff",
    "?after=1e9",
    "?epoch=x",
    "?limit=" + "9" * 5000,
]


class Wire:
    """A raw connection, opened again where the scorer closed it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.open: socket.socket | None = None
        self.rest = b""

    def exchange(self, request: bytes, *, head: bool) -> int:
        """The status of the reply; 0 where the scorer closed the connection without one."""
        for fresh in (self.open is None, True):
            if fresh:
                self.close()
                self.open, self.rest = socket.create_connection(self.address, timeout=SECONDS), b""
            try:
                assert self.open is not None
                self.open.sendall(request)
                return self._reply(head=head)
            except (ConnectionError, EOFError):
                self.close()
                if fresh:
                    return 0
        raise AssertionError

    def _reply(self, *, head: bool) -> int:
        while b"\r\n\r\n" not in self.rest:
            self._more()
        text, _, self.rest = self.rest.partition(b"\r\n\r\n")
        lines = text.decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        length = 0 if head else int(headers.get("content-length", 0))
        while len(self.rest) < length:
            self._more()
        self.rest = self.rest[length:]
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1])

    def _more(self) -> None:
        assert self.open is not None
        received = self.open.recv(1 << 16)
        if not received:
            raise EOFError
        self.rest += received

    def close(self) -> None:
        """Close it."""
        if self.open is not None:
            self.open.close()
            self.open = None


class Maker:
    """Makes requests.

    Args:
        seed: same seed, same requests.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        sketches = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float16)
        header = {
            "run_id": "fuzz", "policy_version": 0, "projection": PROJECTION.to_map(),
            "problem_ids": ["p0", "p1", "p2", "p3"],
            "dtype": "float16", "norms": [1.0, 2.0, 3.0, 4.0], "tokens": [1, 2, 3, 4], "rollouts": [8, 8, 8, 8],
            "request_id": "r", "epoch": 0,
        }  # fmt: skip
        score = {**header, "pass_rates": [0.0, 0.5, 0.5, 1.0], "strategy": "cosine", "select": 2}
        refresh = {**header, "aggregation": "pooled"}
        select = {
            "run_id": "fuzz",
            "policy_version": 0,
            "count": 2,
            "half_life": 4.0,
            "exploration": 0.1,
            "cooldown": 1,
            "seed": 0,
        }
        self.maps = {"/score": score, "/refresh_validation": refresh, "/select": select}
        self.floats = {}, sketches.astype(float).tolist(), sketches.tobytes()
        matrix = SketchMatrix.of(sketches, "int8")
        whole = np.frombuffer(matrix.data, np.int8).reshape(4, 8)
        self.int8 = {"dtype": "int8", "scales": list(matrix.scales or ())}, whole.tolist(), whole.tobytes()

    def structured(self) -> tuple[str, str, bytes]:
        """Route, Content-Type and body of a valid request with a key or two replaced."""
        rng = self.rng
        route = rng.choice(list(self.maps))
        value = copy.deepcopy(self.maps[route])
        keys, sketches, data = rng.choice((self.floats, self.floats, self.int8))
        if route != "/select":
            value |= copy.deepcopy(keys)
        value["request_id"] = f"r{rng.randrange(1000)}" if rng.random() < 0.7 else value.get("request_id")
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            place: Any = value
            if rng.random() < 0.2 and isinstance(value.get("projection"), dict):
                place = value["projection"]
            key = rng.choice([*place, "unknown", "sketches"])
            strange = copy.deepcopy(rng.choice(STRANGE))
            if rng.random() < 0.2:
                place.pop(key, None)
            elif isinstance(place.get(key), list) and place[key] and rng.random() < 0.5:
                place[key][rng.randrange(len(place[key]))] = strange
            else:
                place[key] = strange
        if rng.random() < 0.5:
            if route != "/select":
                value.setdefault("sketches", copy.deepcopy(sketches))
                if keys is self.floats[0]:
                    value.pop("dtype", None)
            return (
                route,
                "application/json",
                json.dumps(value, default=lambda _: "bytes").encode("utf-8", "surrogatepass"),
            )
        packed = msgpack.packb(value, unicode_errors="surrogatepass")
        tail = b"" if route == "/select" else msgpack.packb(data)
        return route, "application/msgpack", packed + tail

    def mutated(self) -> tuple[str, str, bytes]:
        """The same with its bytes changed."""
        rng = self.rng
        route, kind, body = self.structured()
        data = bytearray(body)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data) + 1)
            act = rng.randrange(5)
            if act == 0 and at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            elif act == 1:
                del data[at:]
            elif act == 2:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
            elif act == 3:
                data[at:at] = rng.choice(
                    (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 600, b"[" * 5000, b"\xdf\x7f\0\0\0")
                )
            else:
                del data[at : at + rng.randrange(20)]
        return route, kind, bytes(data)

    def request(self) -> tuple[bytes, bool]:
        """The bytes of a whole request, and whether its reply has no body."""
        rng = self.rng
        route, kind, body = self.structured() if rng.random() < 0.5 else self.mutated()
        method = "POST"
        if rng.random() < 0.1:
            method, route = rng.choice(METHODS), rng.choice(ROUTES)
        if rng.random() < 0.05:
            route += rng.choice(QUERIES)
        if rng.random() < 0.03:
            kind = rng.choice(("", "text/plain", "application/msgpack; charset=x", "a" * 3000, "\xff"))
        accept = rng.choice(
            ("", "Accept: application/msgpack\r\n", "Accept: */*;q=x\r\n", "Accept: " + "a," * 500 + "\r\n")
        )
        extra = rng.choice(("", "", "", "X-A: \x01b\r\n", "Authorization: Bearer x\r\n", "Range: bytes=0-\r\n"))
        fields = f"Host: x\r\nContent-Type: {kind}\r\n{accept}{extra}Content-Length: {len(body)}\r\n\r\n"
        head = f"{method} {route} HTTP/1.1\r\n{fields}"
        return head.encode("latin-1", "replace") + body, method == "HEAD"


def good_request(url: str) -> None:
    """Fails where the scorer does not serve any more."""
    rows = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float16)
    with Client(url, run_id=f"good-{time.time_ns()}", retries=2) as client:
        client.refresh_validation(["a", "b", "c", "d"], rows, policy_version=0, projection=PROJECTION)
        assert len(client.score(["a", "b", "c", "d"], rows, policy_version=0, projection=PROJECTION).problem_ids) == 4
        client.delete_run()


def by_description(examples: int, start: int) -> None:
    """Hold every operation against the OpenAPI description; the first reply that disagrees ends it with a traceback."""
    from openapi import Driver

    scorer, began = ScorerProcess(None), time.monotonic()
    driver = Driver(scorer.url, examples, start)
    driver.send_examples()
    for label, operation in driver.operations.items():
        driver.drive(operation)
        print(f"{label}: {sum(driver.counts.values())} requests, {time.monotonic() - began:.0f} s", flush=True)
    good_request(scorer.url)
    print(f"by status {dict(sorted(driver.counts.items()))}")
    scorer.end()


def main() -> None:
    """Run it, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--openapi", type=int, metavar="N", help="instead, N requests within and N beside each operation's description"
    )
    options = parser.parse_args()
    if options.openapi:
        by_description(options.openapi, options.seed)
        return
    scorer = ScorerProcess(None)
    process, maker, wire = psutil.Process(scorer.process.pid), Maker(options.seed), Wire(scorer.address)
    counts: Counter[int] = Counter()
    slowest, sizes, bad = 0.0, [], []
    began = time.monotonic()
    for number in range(options.requests):
        request, head = maker.request()
        start = time.monotonic()
        try:
            status = wire.exchange(request, head=head)
        except TimeoutError:
            wire.close()
            status = -1
        slowest = max(slowest, time.monotonic() - start)
        counts[status] += 1
        if status == -1 or (status >= 500 and status != 503):
            bad.append((number, status, request[:300]))
        if number % max(1, options.requests // 10) == 0:
            good_request(scorer.url)
            sizes.append(process.memory_info().rss)
            print(f"{number} requests, {time.monotonic() - began:.0f} s, {sizes[-1] / 2**20:.0f} MiB", flush=True)
    good_request(scorer.url)
    growth = sizes[-1] / sizes[1] - 1
    print(
        f"{options.requests} requests in {time.monotonic() - began:.0f} s, by status {dict(sorted(counts.items()))} (0: "
        f"closed without a reply); slowest {slowest:.2f} s; memory {growth:+.1%} since the first tenth; {len(bad)} bad"
    )
    print(*bad[:5], sep="\n", end="")
    scorer.end()
    sys.exit(bool(bad) or growth > 0.1)


if __name__ == "__main__":
    main()
