"""What `/metrics` shows of runs: the same on every replica, nothing of what is gone, and nothing that a key may not see."""

import asyncio
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from liverun import LiveRun
from monitoring import OF_PROMETHEUS, metric_names, panel_queries, rules, variable_metrics
from prometheus_client.parser import text_string_to_metric_families

from gradalign import Client
from gradalign_scorer.store import EmbeddedServer, RunStore
from gradalign_scorer.telemetry.run_metrics import RunFigures

DOCUMENT = Path(__file__).parents[3] / "docs/monitoring.md"
COMMITTED = "gradalign_run_last_commit_timestamp_seconds"


def samples(url, key=None):
    """{name: {run, or other labels as text: value}}"""
    reply = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=120)
    assert reply.status_code == 200, reply.text
    found = {}
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            label = sample.labels.get("run") or ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[label] = sample.value
    return found


def eventually(url, holds, key=None):
    """The samples, once they are as expected: scrapes share a look at the store for a second."""
    deadline = time.monotonic() + 120
    while not holds(found := samples(url, key)):
        assert time.monotonic() < deadline, {name: found[name] for name in found if "run" in name}
        time.sleep(0.2)
    return found


@pytest.fixture
def live(scorer, run_id):
    """A run with two rounds, the validation gradient four policy versions old."""
    with Client(scorer.url, run_id=run_id) as client:
        live = LiveRun(client)
        live.refresh()
        live.round(pool=96, select=24)
        live.round(pool=64, select=16)
        live.round(pool=32, select=8)
        yield live


def test_a_run_is_shown_as_the_store_has_it_on_every_replica(scorer, start_scorer, live, run_id):
    other = start_scorer()
    here = eventually(scorer.url, lambda found: found.get("gradalign_run_policy_version", {}).get(run_id) == 4)
    there = eventually(other.url, lambda found: run_id in found.get(COMMITTED, {}))
    state = live.client.run()
    for found in (here, there):
        assert found["gradalign_validation_age_policy_versions"][run_id] == 4
        assert found["gradalign_validation_coherence"][run_id] == pytest.approx(state.coherence)
        assert found["gradalign_validation_problems"][run_id] == 32
        assert found["gradalign_sketch_reliability"][run_id] == pytest.approx(state.reliability)
        assert found["gradalign_selected_alignment_mean"][run_id] > found["gradalign_alignment_median"][run_id]
        assert found["gradalign_run_problems"][run_id] == state.problems
        assert abs(found[COMMITTED][run_id] - time.time()) < 60
    assert here["gradalign_run_scored_problems_total"][run_id] == 96 + 64 + 32
    assert here["gradalign_run_selected_problems_total"][run_id] == 24 + 16 + 8
    assert 0 < here["gradalign_run_zero_signal_problems_total"][run_id] < 96
    assert run_id not in there.get("gradalign_run_scored_problems_total", {}), "counters are a replica's own"

    with Client(other.url, run_id=run_id) as client:  # the run goes on at the other one
        live.client = client
        live.refresh()
    for url in (scorer.url, other.url):
        eventually(url, lambda found: found.get("gradalign_validation_age_policy_versions", {}).get(run_id) == 0)

    with Client(scorer.url, run_id=run_id) as client:
        client.delete_run()
    for url in (scorer.url, other.url):
        gone = eventually(url, lambda found: run_id not in found.get(COMMITTED, {}))
        assert not [name for name, values in gone.items() if run_id in values]


def shown(store_url, most, runs, record):
    """(runs with gauges, runs with counters) of a process that counted a request of each run."""

    async def go():
        store = RunStore.connect(store_url)
        figures = RunFigures(store, most)
        for run in runs:
            figures.count_round(run, record)
        assert await figures.look()
        await store.close()
        found = {family.name: {s.labels["run"] for s in family.samples} for family in figures.families(lambda _: True)}
        return found[COMMITTED], found["gradalign_run_scored_problems"]

    return asyncio.run(go())


def test_only_so_many_runs_are_shown_and_the_last_ones(scorer, valkey_url, run_id):
    runs = [f"{run_id}-{i}" for i in range(3)]
    for run in runs:
        with Client(scorer.url, run_id=run) as client:
            LiveRun(client).rounds(1)
            (record,) = client.rounds(after=1)
    assert shown(valkey_url, 2, runs, record) == (set(runs[1:]), set(runs[1:]))
    assert shown(valkey_url, 2, [], record) == (set(runs[1:]), set())
    assert shown(valkey_url, 0, runs, record) == (set(), set())


def test_runs_that_are_long_idle_are_not_shown(start_scorer, raw_store, scorer, live, run_id):
    eventually(scorer.url, lambda found: run_id in found.get(COMMITTED, {}))
    raw_store.hset(f"gradalign:{{{run_id}}}:meta", "updated_at", time.time() - 7 * 3600)
    gone = eventually(scorer.url, lambda found: run_id not in found.get(COMMITTED, {}))
    assert not [name for name, values in gone.items() if run_id in values]


def test_a_key_sees_the_runs_that_it_is_for(start_scorer, tmp_path, live, run_id):
    keys = tmp_path / "keys"
    keys.write_text(f"watches read-only\nforeign runs=other-* read-only\nown runs={run_id} read-only\n")
    keys.chmod(0o600)
    locked = start_scorer("--api-key-file", str(keys))
    assert httpx.get(f"{locked.url}/metrics").status_code == 401
    for key, sees in (("watches", True), ("own", True), ("foreign", False)):
        found = samples(locked.url, key)
        assert any(run_id in values for values in found.values()) is sees
        assert found["gradalign_store_up"][""] == 1


def test_a_store_that_is_away_is_told_and_hides_what_may_be_no_longer_so(start_scorer, tmp_path):
    with EmbeddedServer(tmp_path) as store:
        lonely = start_scorer(redis_url=store.url)
        with Client(lonely.url, run_id="r") as client:
            LiveRun(client).rounds(1)
        before = eventually(lonely.url, lambda found: "r" in found.get(COMMITTED, {}))
        assert before["gradalign_store_up"][""] == 1
    after = eventually(lonely.url, lambda found: found["gradalign_store_up"][""] == 0)
    assert COMMITTED not in after
    assert after["gradalign_store_failures_total"][""] > before["gradalign_store_failures_total"][""]
    assert after["gradalign_store_retries_total"][""] >= before["gradalign_store_retries_total"][""] + 3
    assert httpx.post(f"{lonely.url}/select", json={"run_id": "r", "policy_version": 9, "count": 1}).status_code == 503
    assert samples(lonely.url)["gradalign_rejected_total"]["reason=unavailable"] >= 1


def test_parts_of_a_score_add_up_to_less_than_all_of_it(scorer, live):
    found = samples(scorer.url)["gradalign_score_duration_seconds_sum"]
    total = found.pop("stage=total")
    assert found.keys() == {f"stage={name}" for name in ("receive", "decode", "load", "compute", "commit")}
    assert 0 < sum(found.values()) <= total
    assert samples(scorer.url)["gradalign_compute_busy_seconds_total"][""] > 0


@pytest.fixture(scope="module")
def busy(scorer):
    """`/metrics` of a scorer that has scored, selected and refused."""
    with Client(scorer.url, run_id=f"busy-{time.time_ns()}") as client:
        live = LiveRun(client)
        live.rounds(2)
        client.select(4, policy_version=live.version)
    with Client(scorer.url, run_id=f"products-{time.time_ns()}") as client:
        client.refresh_validation(["v"], products=[[1.0]], lengths=1.0, policy_version=0)
        client.score(["a", "b", "c"], products=[[0.1, 0.2]] * 3, products_version=1, policy_version=0)
    with scorer.http() as http:
        assert http.post("/score", json={"run_id": "?"}).status_code == 422
        deadline = time.monotonic() + 120
        awaited = ("gradalign_pass_rate_mean{", "gradalign_rollout_reliability{")
        while not all(name in (text := http.get("/metrics").text) for name in awaited):
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
    return text


def test_every_metric_of_a_panel_or_an_alert_exists(busy):
    there = {sample.name for family in text_string_to_metric_families(busy) for sample in family.samples}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {f"panel {title}": query for title, query in panel_queries()}
    asked |= {f"rule {rule.get('alert') or rule['record']}": rule["expr"] for rule in rules()}
    assert len(asked) > 40
    for place, query in asked.items():
        missing = metric_names(query) - there - recorded - OF_PROMETHEUS
        assert not missing, f"{place} asks for {missing}, which no scorer shows"
    assert variable_metrics() <= there


def test_labels_that_queries_group_by_exist(busy):
    there = {}
    for family in text_string_to_metric_families(busy):
        for sample in family.samples:
            there.setdefault(sample.name, set()).update(sample.labels)
    given = {"instance", "job", "alertname", "severity", "alertstate"}
    for place, query in [*panel_queries(), *((rule.get("alert"), rule["expr"]) for rule in rules())]:
        labels = set().union(*(there.get(name, {"run"}) for name in metric_names(query)))
        grouped = {
            label.strip() for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for label in group.split(",")
        }
        assert grouped <= labels | given, f"{place}: {query}"


def test_the_documentation_lists_every_metric_with_its_type_and_labels(busy):
    shown = {}
    for family in text_string_to_metric_families(busy):
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown[name] = (family.type, labels)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*)\| \S.* \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows} == shown


def test_the_documentation_lists_every_alert():
    listed = re.findall(r"^\| `(GradAlign\w+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(rule["alert"] for rule in rules() if "alert" in rule)


def test_names_follow_the_conventions_of_prometheus(busy):
    for family in text_string_to_metric_families(busy):
        assert re.fullmatch(r"(gradalign|process)_[a-z_]+", family.name)
        assert len(family.documentation) > 10
        assert not re.search(r"_(ms|milliseconds|minutes|hours|mb|kb|mib|percent)\b", family.name), "a base unit"
        assert not family.name.endswith(("_count", "_sum", "_bucket")), "taken by histograms"
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_requests"))
    assert "_created" not in busy


def test_promtool_takes_what_a_scorer_shows(busy):
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool on the PATH (Debian: apt-get install prometheus)")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=busy, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
