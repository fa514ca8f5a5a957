"""What deploy/ gives to Prometheus and Grafana: rules and dashboard are whole, and promtool, where it is, agrees."""

import re
import shutil
import subprocess
from collections import Counter

import promql_parser
import pytest
import yaml
from monitoring import (
    DEPLOY,
    GRAFANA,
    PROMETHEUS,
    dashboard,
    filled,
    metric_names,
    panel_queries,
    panels,
    rules,
)

ALERTS = [rule for rule in rules() if "alert" in rule]
COMPOSE = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())["services"]


def promtool(*arguments):
    if shutil.which("promtool") is None:
        pytest.skip(
            "there is no promtool on the PATH (Debian: apt-get install prometheus); only the structure was checked"
        )
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_configuration():
    promtool("check", "config", "--syntax-only", "prometheus.yml")


def test_promtool_takes_the_rules():
    promtool("check", "rules", "alerts.yml")


def test_promtool_finds_the_alerts_as_tested():
    promtool("test", "rules", "alerts_test.yml")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(alert):
    assert re.fullmatch(r"GradAlign[A-Z]\w+", alert["alert"])
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description"}
    assert 15 < len(alert["annotations"]["summary"]) < 120
    assert len(alert["annotations"]["description"]) > 80
    assert metric_names(alert["expr"])
    # A summary names the one of many that it is about.
    grouped = promql_parser.parse(alert["expr"])
    if "absent" not in str(grouped):
        assert re.search(r"\$labels\.(instance|run)\b", alert["annotations"]["summary"])


def test_every_rule_is_tested_by_promtool():
    tests = (PROMETHEUS / "alerts_test.yml").read_text()
    names = Counter(rule.get("alert") or rule["record"] for rule in rules())
    assert max(names.values()) == 1
    assert {name for name in names if name not in tests} == set()


def test_scrapes_find_every_scorer_of_the_compose_file():
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    (found,) = scrape["dns_sd_configs"]
    assert set(found["names"]) == {name for name in COMPOSE if name.startswith("scorer")}
    assert found["port"] == 8000
    assert config["rule_files"] == ["alerts.yml"]
    key_file = scrape["authorization"]["credentials_file"]
    assert any(key_file in part for part in COMPOSE["prometheus"]["entrypoint"]), "nothing writes the key"
    for query in [rule["expr"] for rule in rules()] + [query for _, query in panel_queries()]:
        for job in re.findall(r'\bjob="([^"]*)"', query):
            assert job == scrape["job_name"]


def test_grafana_is_given_what_it_is_told_to_read():
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/gradalign.yml").read_text())["providers"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    mounts = dict(mount.split(":")[:2] for mount in COMPOSE["grafana"]["volumes"])
    assert all((DEPLOY.parent / host).is_dir() for host in mounts)
    assert provider["options"]["path"] == mounts["./deploy/grafana/dashboards"]
    home = COMPOSE["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/gradalign.json"


@pytest.mark.parametrize("service", ["prometheus", "grafana"])
def test_monitoring_is_closed_and_pinned(service):
    found = COMPOSE[service]
    assert found["profiles"] == ["monitoring"]
    assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", found["image"]), "an image without a version"
    assert all(port.startswith("127.0.0.1:") for port in found["ports"])
    assert found["read_only"] is True
    assert found["healthcheck"]["test"]
    for mount in found["volumes"]:
        assert mount.endswith(":ro") or not mount.startswith("."), "a file of the repository that it may write"


def test_the_dashboard_is_whole():
    found = dashboard()
    assert (found["uid"], found["title"]) == ("gradalign", "GradAlign")
    ids = Counter(panel["id"] for panel in found["panels"])
    assert max(ids.values()) == 1, "two panels with one id"
    titles = Counter(panel["title"] for panel in found["panels"])
    assert max(titles.values()) == 1
    rows = [panel["title"] for panel in found["panels"] if panel["type"] == "row"]
    assert rows == ["Service health", "Latency by stage", "Throughput", "Curriculum of $run"]
    assert [each["name"] for each in found["templating"]["list"]] == ["datasource", "instance", "run"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_has_a_unit_a_description_and_queries(panel):
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    letters = [target["refId"] for target in panel["targets"]]
    assert letters == [chr(ord("A") + i) for i in range(len(letters))]
    assert letters
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        assert metric_names(filled(target["expr"]))


def test_panels_do_not_overlap():
    taken = set()
    for panel in dashboard()["panels"]:
        x, y, wide, high = (panel["gridPos"][name] for name in "xywh")
        assert x + wide <= 24
        cells = {(column, line) for column in range(x, x + wide) for line in range(y, y + high)}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_counters_are_asked_for_their_rate():
    """A counter's own value says how long the process has run, no more."""
    for place, query in [*panel_queries(), *((rule.get("alert"), rule["expr"]) for rule in rules())]:
        for name in metric_names(query):
            if name.endswith(("_total", "_bucket", "_sum", "_count")):
                assert re.search(rf"\b(rate|increase)\({name}\b", query), f"{place}: {query}"
