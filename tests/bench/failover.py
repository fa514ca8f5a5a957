"""Kills primaries of a Redis Cluster or under Sentinels at random moments under load, and counts what was lost or doubled.

    python tests/bench/failover.py --store cluster|sentinels [--kills N] [--runs N] [--wait REPLICAS] [--seed N]

Each trainer has a run of its own. It scores problems that nobody scored before, with a request id, and sends a request again
until it is acknowledged. A killed primary is started again once a replica has taken over, and comes back as its replica. At
the end every problem is looked up: one that was acknowledged and is missing was lost, one that was scored twice was doubled.
The exit status is 1 where anything is doubled, or lost although replies waited for a replica. Beside the load a second
writer measures for how long an acknowledged write is on the primary alone: nothing older than that is lost with a primary.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import redis

from gradalign import Client, Projection
from gradalign.errors import UnavailableError

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from clusters import Cluster, Node, Sentinels, cluster, sentinels, until
from scorers import ScorerProcess

PROJECTION = Projection(dim=256, seed=0, parameters="ab" * 32)
BATCH = 4


class Trainer(threading.Thread):
    """One run's load, and what was acknowledged of it."""

    def __init__(self, url: str, run_id: str) -> None:
        super().__init__(daemon=True)
        self.client = Client(url, run_id=run_id, retries=0, timeout=30)
        self.sketches = np.random.default_rng(0).standard_normal((BATCH, PROJECTION.dim)).astype(np.float16)
        self.acknowledged: list[float] = []
        self.again = 0
        self.enough = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Until told to stop."""
        try:
            self._until_acknowledged(self.client.refresh_validation, "v", "refresh")
            while not self.enough.is_set():
                number = len(self.acknowledged)
                self._until_acknowledged(self.client.score, str(number), f"score-{number}")
                self.acknowledged.append(time.monotonic())
        except BaseException as error:
            self.error = error

    def _until_acknowledged(self, send: object, name: str, request_id: str) -> None:
        ids = [f"{name}-{i}" for i in range(BATCH)]
        while True:
            try:
                send(ids, self.sketches, policy_version=0, projection=PROJECTION, request_id=request_id)
            except UnavailableError:
                self.again += 1
                time.sleep(0.02)
            else:
                return

    def counted(self) -> tuple[list[float], int]:
        """When the lost requests were acknowledged, and how many were applied twice or in part."""
        self.client.close()
        times: dict[str, int] = {}
        with Client(self.client.base_url, run_id=self.client.run_id, retries=60) as client:
            page = client.problems(limit=1000)
            while True:
                times.update({row.problem_id: row.times_scored for row in page.problems})
                if page.next is None:
                    break
                page = client.problems(limit=1000, cursor=page.next)
            rounds = client.run().rounds
        stored = [[times.get(f"{number}-{i}", 0) for i in range(BATCH)] for number in range(len(self.acknowledged))]
        lost = [at for at, found in zip(self.acknowledged, stored, strict=True) if found == [0] * BATCH]
        odd = sum(found not in ([0] * BATCH, [1] * BATCH) for found in stored)
        return lost, odd + abs(rounds - 1 - (len(stored) - len(lost)))

    def pauses(self) -> list[float]:
        """Seconds from each acknowledgement to the next."""
        return np.diff(self.acknowledged).tolist()


class Window(threading.Thread):
    """For how long an acknowledged write is on its primary alone, seconds."""

    def __init__(self, nodes: list[Node], keys: list[str]) -> None:
        super().__init__(daemon=True)
        self.nodes, self.keys, self.seconds, self.enough = nodes, keys, [], threading.Event()

    def run(self) -> None:
        """Until told to stop."""
        rng = random.Random(0)
        while not self.enough.wait(0.02):
            port = rng.choice(self.nodes).port
            # A node that is dead, a replica, or without that key refuses.
            with suppress(redis.RedisError), redis.Redis(port=port, single_connection_client=True) as one:
                if one.info("replication").get("slave0", {}).get("state") != "online":
                    continue
                one.set(rng.choice(self.keys), 1)
                began = time.monotonic()
                if one.wait(1, 2000) == 1:
                    self.seconds.append(time.monotonic() - began)


def fail_over(house: Cluster | Sentinels, rng: random.Random) -> float:
    """Kill a primary, and start it again as a replica of its successor; when it was killed."""
    nodes = house.nodes if isinstance(house, Cluster) else house.servers
    count = sum(node.is_primary() for node in nodes)
    victim = rng.choice([node for node in nodes if node.is_primary()])
    killed = time.monotonic()
    victim.kill()
    until(lambda: sum(node.is_primary() for node in nodes) == count, 120)
    time.sleep(rng.uniform(0.5, 1.5))
    if isinstance(house, Cluster):
        victim.start()
    else:
        victim.start("--replicaof", f"127.0.0.1 {next(node for node in nodes if node.is_primary()).port}")
    until(house.whole, 120)
    time.sleep(rng.uniform(0.5, 2.0))
    return killed


def report(trainers: list[Trainer], kills: list[float], window: Window) -> tuple[int, int]:
    """Print the counts; how many requests were lost and how many doubled."""
    counts = [trainer.counted() for trainer in trainers]
    lost, doubled = sorted(at for found, _ in counts for at in found), sum(odd for _, odd in counts)
    before = [min(killed - at for killed in kills if killed - at > -1.0) for at in lost]
    pauses = sorted((max(trainer.pauses()) for trainer in trainers), reverse=True)
    print(
        f"{len(kills)} kills; {sum(len(t.acknowledged) for t in trainers)} requests acknowledged, "
        f"{sum(t.again for t in trainers)} times sent again; {len(lost)} lost, {doubled} doubled"
    )
    if lost:
        print(f"  the earliest of the lost was acknowledged {1e3 * max(before):.1f} ms before its primary was killed")
    print(f"  longest pause of a run {pauses[0]:.1f} s")
    if window.seconds:
        middle, high, top = (1e3 * float(np.quantile(window.seconds, q)) for q in (0.5, 0.99, 1.0))
        print(
            f"  a replica had a write {middle:.2f} ms behind its acknowledgement in the middle, {high:.1f} ms at the 99th "
            f"percentile, {top:.1f} ms at most, of {len(window.seconds)}"
        )
    return len(lost), doubled


def main() -> None:
    """Run it, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("cluster", "sentinels"), required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--wait", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="ga-") as folder:
        place = Path(folder)
        made = (
            cluster(place, replicas=1, cluster_node_timeout="1500")
            if options.store == "cluster"
            else sentinels(place, down_after_ms=2000)
        )
        with made as house:
            scorer = ScorerProcess(house.url, REDIS_WAIT_REPLICAS=str(options.wait))
            try:
                lost, doubled = load(house, scorer.url, options, rng)
            finally:
                scorer.end()
    sys.exit(1 if doubled or (lost and options.wait) else 0)


def load(house: Cluster | Sentinels, url: str, options: argparse.Namespace, rng: random.Random) -> tuple[int, int]:
    """Kill under load, and report."""
    several = isinstance(house, Cluster)
    names = [house.run_on(i % 3, f"run{i}") if several else f"run{i}" for i in range(options.runs)]
    window = Window(house.nodes if several else house.servers, [f"gradalign:{{{name}}}:window" for name in names])
    trainers = [Trainer(url, name) for name in names]
    for thread in (*trainers, window):
        thread.start()
    time.sleep(2.0)
    kills = [fail_over(house, rng) for _ in range(options.kills)]
    for thread in (*trainers, window):
        thread.enough.set()
    for thread in (*trainers, window):
        thread.join(120)
    errors = [trainer.error for trainer in trainers if trainer.error or trainer.is_alive()]
    if errors:
        raise SystemExit(f"a trainer failed: {errors}")
    return report(trainers, kills, window)


if __name__ == "__main__":
    main()
