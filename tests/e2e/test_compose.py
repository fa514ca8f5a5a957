"""The deployed form, as docs/deploy.md gives it: what the compose stack is told, it keeps.

One test for the stack, since images take minutes to build, and one for each part of the profile `monitoring`. They need a
docker engine with compose, and are skipped without. Settings of the
build, such as PIP_INDEX_URL, PIP_FIND_LINKS and BUILD_NETWORK, come from the environment.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import tomllib
import uuid
from pathlib import Path

import httpx
import pytest
import yaml
from liverun import LiveRun
from monitoring import dashboard, panel_queries, rules

from gradalign import Client, Projection, RequestError, UnavailableError
from gradalign_scorer.settings import Settings

ROOT = Path(__file__).parents[2]
TREE = ["docker-compose.yml", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "proto", "services", "deploy"]
PROJECTION = Projection(dim=4, seed=0, parameters="ab" * 32)
VALIDATION = {"problem_ids": ["trusted-1", "trusted-2"], "sketches": [[1, 0, 0, 0], [1, 1, 0, 0]]}
CANDIDATES = {"problem_ids": ["against", "along", "across"], "sketches": [[-1, 0, 0, 0], [2, 1, 0, 0], [0, 0, 1, 0]]}
BACKUP = "redis-cli --rdb /data/backup.rdb >&2 && cat /data/backup.rdb && rm /data/backup.rdb"
RESTORE = (
    "mkdir -p appendonlydir && cd appendonlydir && rm -f * && cat > appendonly.aof.1.base.rdb && "
    "echo 'file appendonly.aof.1.base.rdb seq 1 type b' > appendonly.aof.manifest"
)


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


@pytest.fixture
def stack(tmp_path):
    fault = engine_fault()
    if fault is not None:
        pytest.skip(f"no docker engine: {fault}")
    stack = Stack(tmp_path)
    yield stack
    stack.compose("--profile", "demo", "--profile", "monitoring", "down", "--volumes", "--remove-orphans")
    images = [f"gradalign-{part}:{stack.environment['GRADALIGN_TAG']}" for part in ("scorer", "trainer")]
    subprocess.run(["docker", "rmi", *images], env=stack.environment, capture_output=True, check=False)


def need_image(service):
    """Skip where neither the engine has the service's image nor a registry gives it."""
    image = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][service]["image"]
    if engine_fault() is not None:
        return
    for command in (["image", "inspect"], ["pull", "--quiet"]):
        done = subprocess.run(["docker", *command, image], capture_output=True, text=True, timeout=600, check=False)
        if done.returncode == 0:
            return
    pytest.skip(f"{image} cannot be pulled: {done.stderr.strip()[-200:]}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_stack_keeps_what_it_was_told(stack):
    stack.up(timeout=1800)
    check_it_is_closed(stack)
    check_it_is_small(stack)
    check_it_runs_as_any_user(stack)
    tell(stack)
    check_nothing_is_lost(stack)
    check_a_backup_brings_it_back(stack)
    check_replicas_share_it(stack)
    check_a_key_locks_it(stack)
    check_the_demo(stack)
    check_sigterm_drains(stack)


def check_it_is_closed(stack):
    (redis,) = stack.inspect("redis")
    assert not any(redis["NetworkSettings"]["Ports"].values()), "redis is published"
    (scorer,) = stack.inspect("scorer")
    assert scorer["HostConfig"]["ReadonlyRootfs"]
    assert stack.compose("exec", "-T", "scorer", "id", "-u").strip() == b"10001"
    for tool in ("gcc", "nvcc"):
        assert stack.compose("exec", "-T", "scorer", "sh", "-c", f"command -v {tool} || true") == b""


def check_it_is_small(stack):
    code = "import importlib.metadata as m, torch; print(torch.version.cuda, *{p.name for p in m.distributions()})"
    cuda, *names = stack.compose("exec", "-T", "scorer", "python", "-c", code).decode().split()
    if cuda != "None":
        print("not checked: PyTorch's index of CPU wheels was not reached, and the default one gave torch with CUDA")
        return
    assert [name for name in names if name.startswith(("nvidia", "triton", "cuda"))] == []
    layers = stack.run("docker", "history", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", stack.image())
    copied = [int(line.split()[0]) for line in layers.decode().splitlines() if "COPY" in line]
    assert sum(copied) < 1.0e9


def check_it_runs_as_any_user(stack):
    """As OpenShift does: a user without a name, of the group 0, on a read-only root."""
    name = stack.environment["COMPOSE_PROJECT_NAME"]
    stack.run(
        "docker", "run", "--detach", "--name", f"{name}-any", "--user", "1234567890:0", "--read-only", "--tmpfs", "/tmp",
        "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", f"{name}_store",
        "--env", "GRADALIGN_REDIS_URL=redis://redis:6379/0", "--env", "GRADALIGN_API_KEY=of-this-test", stack.image(),
    )  # fmt: skip
    try:
        health = ["docker", "inspect", "--format", "{{.State.Health.Status}}", f"{name}-any"]
        eventually(lambda: stack.run(*health).strip() == b"healthy" or stack.run("docker", "logs", f"{name}-any"), 180)
        assert stack.run("docker", "exec", f"{name}-any", "sh", "-c", "id -u; test -w /tmp").strip() == b"1234567890"
    finally:
        stack.run("docker", "rm", "--force", f"{name}-any")


def tell(stack):
    (url,) = stack.urls()
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    with stack.client() as client:
        client.refresh_validation(**VALIDATION, policy_version=0, projection=PROJECTION)
    assert stack.score().selected == ["along"]
    body = {"run_id": stack.run_id, "policy_version": 0, "projection": PROJECTION.to_map(), **CANDIDATES}
    assert httpx.post(f"{url}/score", json=body).json()["problem_ids"] == ["along", "across", "against"]


def check_nothing_is_lost(stack):
    before = stack.state()
    stack.compose("restart", "scorer")
    stack.wait_healthy()
    assert stack.state() == before

    stack.compose("kill", "-s", "SIGKILL", "redis")
    with pytest.raises(UnavailableError):
        stack.score()
    stack.up()
    assert stack.state() == before

    stack.score()
    before = stack.state()
    stack.compose("down")
    stack.up()
    assert stack.state() == before
    assert stack.score().selected == ["along"]  # with the validation gradient of before


def check_a_backup_brings_it_back(stack):
    before = stack.state()
    backup = stack.compose("exec", "-T", "redis", "sh", "-c", BACKUP)
    stack.compose("down", "--volumes")
    (stack.folder / "backup.rdb").write_bytes(backup)
    with (stack.folder / "backup.rdb").open("rb") as source:
        stack.compose("run", "--rm", "-T", "--no-deps", "redis", "sh", "-c", RESTORE, stdin=source)
    stack.up()
    assert stack.state() == before


def check_replicas_share_it(stack):
    stack.environment["SCORER_PORTS"] = f"{stack.first_port}-{stack.first_port + 1}"
    stack.up(scorers=2)
    urls = stack.urls()
    assert urls == [f"http://127.0.0.1:{stack.first_port + i}" for i in (0, 1)]
    assert stack.score(urls[0]).selected == stack.score(urls[1]).selected == ["along"]
    assert stack.state(urls[0]) == stack.state(urls[1])
    stack.compose("restart", "scorer")
    stack.wait_healthy(scorers=2)
    assert stack.urls() == urls


def check_a_key_locks_it(stack):
    before = stack.state()
    stack.environment |= {"GRADALIGN_API_KEY": "of-this-test", "SCORER_PORTS": str(stack.first_port)}
    stack.compose("stop", "scorer")
    stack.up()
    with pytest.raises(RequestError, match="key"):
        stack.state()
    assert stack.state(api_key="of-this-test") == before


def check_the_demo(stack):
    shown = stack.compose("--profile", "demo", "run", "--rm", "-T", "demo", timeout=2400).decode()
    print(shown)
    ahead = dict(re.findall(r"^│ (\w+) +│[^\n]*([+-]\d\.\d{3}) │$", shown, re.MULTILINE))
    assert ahead.keys() == {"inverted", "imbalance"}, shown
    assert all(float(difference) > 0.05 for difference in ahead.values()), shown
    assert shown.count(" 0 rounds without the scorer") == 2, shown
    picture = stack.compose(
        "--profile", "demo", "run", "--rm", "-T", "--no-deps", "--entrypoint", "cat", "demo", "/runs/demo/demo.png"
    )
    assert picture.startswith(b"\x89PNG")


def check_sigterm_drains(stack):
    stack.compose("stop", "scorer")
    assert [box["State"]["ExitCode"] for box in stack.inspect("scorer")] == [0]


def monitored(stack, *services):
    """Start services of the profile beside a scorer with keys, and wait until they are healthy."""
    stack.environment["GRADALIGN_API_KEY"] = "of-this-test,of-another"
    stack.up(timeout=1800)
    stack.compose("--profile", "monitoring", "up", "-d", "--no-deps", *services)
    for service in services:
        eventually(lambda service=service: stack.inspect(service)[0]["State"]["Health"]["Status"] == "healthy", 120)
        (box,) = stack.inspect(service)
        assert box["HostConfig"]["ReadonlyRootfs"]
        bindings = [each for each in box["NetworkSettings"]["Ports"].values() if each]
        assert bindings
        assert all(binding["HostIp"] == "127.0.0.1" for each in bindings for binding in each)


def eventually(holds, seconds, meanwhile=lambda: time.sleep(1)):
    """Wait until it holds; it may give the reason why not instead of False."""
    deadline = time.monotonic() + seconds
    while (found := holds()) is not True:
        assert time.monotonic() < deadline, found
        meanwhile()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_prometheus_of_the_profile_answers_every_panel_and_alerts(request):
    need_image("prometheus")
    stack = request.getfixturevalue("stack")
    monitored(stack, "prometheus")

    def ask(path, **parameters):
        reply = httpx.get(f"{stack.prometheus}/api/v1/{path}", params=parameters).json()
        assert reply["status"] == "success", reply
        return reply["data"]

    def empty_panels():
        return [title for title, query in panel_queries() if not ask("query", query=query)["result"]]

    with stack.client(api_key="of-another") as client:
        live = LiveRun(client)

        def train():
            live.rounds(1)
            client.select(4, policy_version=live.version)
            time.sleep(0.5)

        # Nothing is wrong yet, so that nothing fires; the rates of all the others need two scrapes.
        eventually(lambda: empty_panels() == ["Firing alerts"] or empty_panels(), 180, train)
    assert {target["health"] for target in ask("targets")["activeTargets"]} == {"up"}
    loaded = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    assert sorted(rule["name"] for rule in loaded) == sorted(rule.get("alert") or rule["record"] for rule in rules())
    assert {rule["health"] for rule in loaded} == {"ok"}

    stack.compose("stop", "redis")
    firing = 'ALERTS{alertname="GradAlignStoreAway", alertstate="firing"}'
    eventually(lambda: bool(ask("query", query=firing)["result"]), 180)
    assert "Firing alerts" not in empty_panels()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_grafana_of_the_profile_shows_the_dashboard_to_everyone_and_lets_nobody_change_it(request):
    need_image("grafana")
    need_image("prometheus")
    stack = request.getfixturevalue("stack")
    monitored(stack, "prometheus", "grafana")
    with httpx.Client(base_url=stack.grafana) as http:
        shown = http.get("/api/dashboards/uid/gradalign").raise_for_status().json()
        assert len(shown["dashboard"]["panels"]) == len(dashboard()["panels"])
        assert shown["meta"]["provisioned"]
        up = "/api/datasources/proxy/uid/prometheus/api/v1/query?query=up"
        eventually(lambda: bool(http.get(up).json()["data"]["result"]), 60)
        changed = {"dashboard": {**shown["dashboard"], "title": "mine"}, "overwrite": True}
        assert http.post("/api/dashboards/db", json=changed).status_code in (401, 403)
        login = http.post("/login", json={"user": "admin", "password": "admin"})
        assert login.status_code in (400, 401, 403, 404), "the default password opens it"


def test_the_compose_file_passes_only_settings_that_exist():
    names = re.findall(r"^ +(GRADALIGN_\w+):", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    assert names
    known = {f"GRADALIGN_{name.upper()}" for name in Settings.model_fields}
    assert set(names) <= known


def test_the_example_shows_the_defaults_of_the_compose_file():
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text()))
    shown = dict(re.findall(r"^# (\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert shown.keys() == used.keys()
    for name, value in used.items():
        setting = (
            Settings.model_fields.get(name.removeprefix("GRADALIGN_").lower())
            if name.startswith("GRADALIGN_")
            else None
        )
        assert shown[name] == (value or (str(setting.default) if setting and setting.default else "")), name


def test_the_images_hold_what_the_project_asks_for():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "deploy/constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["scorer"], *extras["embedded"], *extras["sketch"], *extras["trainer"]]
    names = {re.split(r"[\[>=<;! ]", each)[0].lower().replace("_", "-") for each in asked}
    assert names - {"gradalign", "torch"} <= pinned
    assert "torch" not in pinned, "its build is the build argument TORCH's to choose"
