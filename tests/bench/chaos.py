"""Kills the scorer, its store, or both with SIGKILL at random moments under load, and counts what was lost or doubled.

    python tests/bench/chaos.py [--kills N] [--trainers N] [--seed N]

Each trainer has a run of its own, sends scores, refreshes, selections and snapshots with request ids, and sends a request
again, under its id, until it is acknowledged. A dead scorer is started again on its port and its data folder; a dead store
is the scorer's to start again. At the end every run is read and compared with what its trainer counted: nothing
acknowledged may be missing, nothing may be there twice. The exit status is 1 where anything is.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil

from gradalign import Client, Projection
from gradalign.errors import UnavailableError

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from scorers import ScorerProcess

PROJECTION = Projection(dim=256, seed=0, parameters="ab" * 32)
PROBLEMS, BATCH = 64, 16


class Trainer(threading.Thread):
    """One run's load, and what was acknowledged of it."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.rng, self.name = np.random.default_rng(number), f"run-{number}"
        self.client = Client(url, run_id=self.name, retries=0, timeout=15)
        self.scored: Counter[str] = Counter()
        self.selected: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.again = 0
        self.enough = threading.Event()
        self.error: BaseException | None = None
        self.version = 0

    def run(self) -> None:
        """Until told to stop."""
        try:
            self._request("refresh", 0)
            number = 1
            while not self.enough.is_set():
                kind = ("score", "score", "score", "score", "select", "refresh")[number % 6]
                self._request(kind, number)
                number += 1
        except BaseException as error:
            self.error = error

    def _request(self, kind: str, number: int) -> None:
        ids = [f"p{i}" for i in sorted(self.rng.choice(PROBLEMS, BATCH, replace=False).tolist())]
        sketches = self.rng.standard_normal((BATCH, PROJECTION.dim)).astype(np.float16)
        spec = {"policy_version": number // 6, "request_id": f"{kind}-{number}"}
        while True:
            try:
                if kind == "score":
                    reply = self.client.score(ids, sketches, projection=PROJECTION, select=4, **spec)
                    self.scored.update(ids)
                    self.selected.update(reply.selected)
                elif kind == "refresh":
                    self.version = self.client.refresh_validation(
                        ids, sketches, projection=PROJECTION, **spec
                    ).validation_version
                else:
                    self.selected.update(self.client.select(3, **spec).selected)
            except UnavailableError:
                self.again += 1
                time.sleep(0.05)
                continue
            self.done[kind] += 1
            return

    def faults(self) -> list[str]:
        """What the scorer holds otherwise than this trainer counted."""
        self.client.close()
        with Client(self.client.base_url, run_id=self.name, retries=60) as client:
            run, found = client.run(), []
            if run.rounds != sum(self.done.values()):
                found.append(f"{run.rounds} rounds, {sum(self.done.values())} acknowledged")
            if run.validation_version != self.done["refresh"] or self.version != self.done["refresh"]:
                found.append(f"validation version {run.validation_version}, {self.done['refresh']} refreshes")
            for i in range(PROBLEMS):
                state = client.problem(f"p{i}")
                counted = self.scored[f"p{i}"], self.selected[f"p{i}"]
                if (state.times_scored, state.times_selected) != counted:
                    found.append(f"p{i}: {(state.times_scored, state.times_selected)}, counted {counted}")
        return [f"{self.name}: {fault}" for fault in found]


class House:
    """A scorer with its embedded store, killed and started again on the same port and folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.scorer = self._start("0")
        self.port = self.scorer.url.rpartition(":")[2]

    def _start(self, port: str) -> ScorerProcess:
        return ScorerProcess(None, "--data-dir", self.folder, "--port", port)

    def store(self) -> psutil.Process | None:
        """The store's process."""
        for child in psutil.Process(self.scorer.process.pid).children(recursive=True):
            if "valkey" in child.name():
                return child
        return None

    def kill(self, what: str) -> None:
        """Kill, and start what does not start itself."""
        store = self.store()
        if what in ("store", "both") and store is not None:
            store.kill()
        if what in ("scorer", "both"):
            self.scorer.kill()
            self.scorer.folder.cleanup()
            self.scorer = self._start(self.port)


def main() -> None:
    """Run it, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--trainers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, kills = random.Random(options.seed), Counter()
    folder = tempfile.mkdtemp(prefix="ga-")
    house = House(folder)
    trainers = [Trainer(house.scorer.url, number) for number in range(options.trainers)]
    for trainer in trainers:
        trainer.start()
    began = time.monotonic()
    while sum(kills.values()) < options.kills:
        time.sleep(rng.uniform(0.05, 0.6))
        what = rng.choice(("scorer", "store", "both"))
        house.kill(what)
        kills[what] += 1
        broken = [trainer.error for trainer in trainers if trainer.error]
        if broken:
            raise SystemExit(f"a trainer gave up: {broken[0]!r}")
        if sum(kills.values()) % 20 == 0:
            done = sum(sum(trainer.done.values()) for trainer in trainers)
            print(
                f"{sum(kills.values())} kills, {done} requests acknowledged, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    for trainer in trainers:
        trainer.enough.set()
    for trainer in trainers:
        trainer.join(120)
    faults = [fault for trainer in trainers for fault in trainer.faults()]
    done = sum((trainer.done for trainer in trainers), Counter())
    print(
        f"{dict(kills)} kills in {time.monotonic() - began:.0f} s; acknowledged {dict(done)}, "
        f"sent again {sum(trainer.again for trainer in trainers)} times; {len(faults)} faults"
    )
    print(*faults, sep="\n", end="")
    house.scorer.end()
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
