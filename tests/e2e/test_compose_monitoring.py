"""The profile `monitoring` of the compose stack, one test for each part; needs an engine as test_compose.py does."""

import subprocess
import time

import httpx
import pytest
import yaml
from composekit import ROOT, engine_fault, eventually
from liverun import LiveRun
from monitoring import dashboard, panel_queries, rules


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
