"""A compose stack of a test's own, from a copy of the tree."""

import json
import os
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path

from gradalign import Client, Projection

ROOT = Path(__file__).parents[2]
TREE = ["docker-compose.yml", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "proto", "services", "deploy"]
PROJECTION = Projection(dim=4, seed=0, parameters="ab" * 32)
VALIDATION = {"problem_ids": ["trusted-1", "trusted-2"], "sketches": [[1, 0, 0, 0], [1, 1, 0, 0]]}
CANDIDATES = {"problem_ids": ["against", "along", "across"], "sketches": [[-1, 0, 0, 0], [2, 1, 0, 0], [0, 0, 1, 0]]}


def engine_fault():
    """Why there is no engine to test with; None where there is."""
    if shutil.which("docker") is None:
        return "there is no `docker` command"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except subprocess.TimeoutExpired:
            return f"`{' '.join(command)}` does not answer"
        if done.returncode:
            return f"`{' '.join(command)}` fails: {done.stderr.strip()[-200:]}"
    return None


def free_ports(count):
    """The first of `count` neighbouring free ports."""
    for first in range(18000, 19000, count):
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports between 18000 and 19000")


class Stack:
    """A compose project of the test's own, from a copy of the tree and without a .env."""

    def __init__(self, folder):
        self.folder = folder
        name = f"gradalign-test-{uuid.uuid4().hex[:8]}"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("GRADALIGN_", "SCORER_", "COMPOSE_"))}
        self.first_port = free_ports(4)
        self.prometheus, self.grafana = (f"http://127.0.0.1:{self.first_port + i}" for i in (2, 3))
        self.environment = {
            **clean,
            "COMPOSE_PROJECT_NAME": name,
            "GRADALIGN_TAG": name,
            "SCORER_PORTS": str(self.first_port),
            "PROMETHEUS_PORT": str(self.first_port + 2),
            "GRAFANA_PORT": str(self.first_port + 3),
        }
        self.run_id = "kept"
        for part in TREE:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, folder / part)

    def run(self, *command, timeout=300, **more):
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, timeout=timeout, check=False, **more
        )
        assert done.returncode == 0, (
            f"{' '.join(command)}\n{done.stdout[-4000:].decode()}\n{done.stderr[-4000:].decode()}"
        )
        return done.stdout

    def compose(self, *arguments, **more):
        return self.run("docker", "compose", *arguments, **more)

    def inspect(self, service):
        """What the engine knows of the containers of a service, those that ended included."""
        names = self.run(
            "docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.service={service}",
            "--filter", f"label=com.docker.compose.project={self.environment['COMPOSE_PROJECT_NAME']}",
        ).decode().split()  # fmt: skip
        return json.loads(self.run("docker", "inspect", *names)) if names else []

    def up(self, scorers=1, timeout=300):
        """Start what is not running, and wait until all of it is healthy."""
        self.compose("up", "-d", "--scale", f"scorer={scorers}", timeout=timeout)
        self.wait_healthy(scorers)

    def wait_healthy(self, scorers=1):
        deadline = time.monotonic() + 120
        while True:
            states = [box["State"] for service in ("redis", "scorer") for box in self.inspect(service)]
            if len(states) == 1 + scorers and all(s.get("Health", {}).get("Status") == "healthy" for s in states):
                return
            assert time.monotonic() < deadline, (
                f"not healthy: {states}\n{self.compose('logs', '--tail', '50').decode()}"
            )
            time.sleep(0.5)

    def image(self):
        """The scorer's image."""
        return f"gradalign-scorer:{self.environment['GRADALIGN_TAG']}"

    def urls(self):
        """The scorers' addresses."""
        found = [box["NetworkSettings"]["Ports"]["8000/tcp"] for box in self.inspect("scorer")]
        assert all(binding["HostIp"] == "127.0.0.1" for bindings in found for binding in bindings)
        return sorted(f"http://127.0.0.1:{bindings[0]['HostPort']}" for bindings in found)

    def client(self, url=None, **settings):
        return Client(url or self.urls()[0], run_id=self.run_id, **{"retries": 0, "api_key": "", **settings})

    def score(self, url=None, **settings):
        with self.client(url, **settings) as client:
            return client.score(**CANDIDATES, policy_version=0, projection=PROJECTION, select=1)

    def state(self, url=None, **settings):
        """Everything the scorer tells of the run."""
        with self.client(url, **settings) as client:
            ids = CANDIDATES["problem_ids"]
            return client.run(), client.problems(), client.rounds(), [client.problem(each) for each in ids]


def eventually(holds, seconds, meanwhile=lambda: time.sleep(1)):
    """Wait until it holds; it may give the reason why not instead of False."""
    deadline = time.monotonic() + seconds
    while (found := holds()) is not True:
        assert time.monotonic() < deadline, found
        meanwhile()
