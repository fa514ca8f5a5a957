"""The deployed form, as docs/deploy.md gives it: what the compose stack is told, it keeps.

One test for the stack, since images take minutes to build. It needs a docker engine with compose, and is skipped without.
Settings of the build, such as PIP_INDEX_URL, PIP_FIND_LINKS and BUILD_NETWORK, come from the environment.
"""

import re

import httpx
import pytest
from composekit import CANDIDATES, PROJECTION, VALIDATION, eventually

from gradalign import RequestError, UnavailableError

BACKUP = "redis-cli --rdb /data/backup.rdb >&2 && cat /data/backup.rdb && rm /data/backup.rdb"
RESTORE = (
    "mkdir -p appendonlydir && cd appendonlydir && rm -f * && cat > appendonly.aof.1.base.rdb && "
    "echo 'file appendonly.aof.1.base.rdb seq 1 type b' > appendonly.aof.manifest"
)


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
