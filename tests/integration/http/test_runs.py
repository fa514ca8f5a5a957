"""Selection, runs, snapshots and the operator's routes, over the wire."""

import numpy as np
import pytest

from gradalign import Client, NotFound
from gradalign.wire.messages import STRATEGIES


@pytest.fixture
def client(scorer, run_id):
    with Client(scorer.url, run_id=run_id, retries=0) as client:
        yield client


@pytest.fixture
def run(client, problem_ids, sketches, projection):
    """A run whose eight problems were scored at policy version 1."""
    client.refresh_validation(problem_ids, sketches, policy_version=1, projection=projection)
    client.score(problem_ids, sketches, policy_version=1, projection=projection)
    return client


def test_select_takes_the_best_and_explores(run, problem_ids):
    ranked = [row.problem_id for row in run.problems().problems]
    assert run.select(3, policy_version=1, exploration=0.0).selected == ranked[:3]
    pool = [*problem_ids, "new-1", "new-2"]
    picks = run.select(4, policy_version=2, problem_ids=pool, exploration=0.5, cooldown=5)
    assert sorted(picks.explored) == ["new-1", "new-2"]
    assert picks.selected == [*ranked[3:5], *picks.explored]
    assert picks.priorities[2:] == [None, None]
    assert run.problem("new-1").times_selected == 1


def test_select_is_reproducible(run):
    run.snapshot("before")
    first = run.select(4, policy_version=1, exploration=0.5, seed=7)
    run.restore("before")
    assert run.select(4, policy_version=1, exploration=0.5, seed=7).selected == first.selected


def test_problems_come_in_pages_by_priority(run):
    everything = run.problems(limit=100).problems
    pages, cursor = [], None
    while True:
        page = run.problems(cursor=cursor, limit=3)
        pages.append(page.problems)
        cursor = page.next
        if cursor is None:
            break
    assert [row for page in pages for row in page] == everything
    assert max(map(len, pages)) == 3
    assert [row.priority for row in everything] == sorted((row.priority for row in everything), reverse=True)


def test_an_outline_shows_both_ends_and_an_even_sample(run, problem_ids):
    ranked = run.problems().problems
    outline = run.outline(ends=2, sample=3)
    assert outline.problems == len(problem_ids)
    assert outline.best == ranked[:2]
    assert outline.worst == ranked[:-3:-1]
    assert outline.sample == [ranked[0], ranked[4], ranked[7]]
    assert run.outline(ends=100, sample=500).sample == ranked
    nothing = run.outline(ends=0)
    assert (nothing.best, nothing.worst, nothing.sample) == ([], [], [])


@pytest.mark.parametrize("problem_id", ["a/b", "a b?c#d", "ü/..x", "%2F", "x" * 256, "a//b"])
def test_any_problem_id_can_be_asked_for(run, sketches, projection, problem_id):
    run.score([problem_id], sketches[:1], policy_version=3, projection=projection)
    state = run.problem(problem_id)
    assert state.problem_id == problem_id
    assert [entry["policy_version"] for entry in state.history] == [3]


def test_rounds_tell_what_happened(run):
    run.select(2, policy_version=1)
    rounds = run.rounds()
    assert [record.kind for record in rounds] == ["refresh", "score", "select"]
    assert [record.round for record in rounds] == [1, 2, 3]
    figures = {"strategy", "no_signal", "rejected", "alignment_quantiles", "reliability", "validation_age"}
    assert set(rounds[1].summary) - {"advised_dim"} == figures
    assert rounds[2].summary == {"explored": 0, "selected_tenths": [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]}
    assert run.rounds(after=1, limit=1) == rounds[1:2]


def test_a_snapshot_puts_the_curriculum_back(run, problem_ids, sketches, projection):
    before = run.problems(), run.run()
    run.snapshot("step-1")
    run.refresh_validation(problem_ids, -sketches, policy_version=8, projection=projection)
    run.score(problem_ids, sketches, policy_version=9, projection=projection, select=3)
    run.restore("step-1")
    assert run.problems() == before[0]
    assert run.run().policy_version == before[1].policy_version
    ranking = run.score(problem_ids, sketches, policy_version=1, projection=projection)
    assert ranking.validation_version == 1
    assert ranking.problem_ids == [row.problem_id for row in before[0].problems]


def test_a_deleted_run_is_gone_and_begins_anew(run, problem_ids, sketches, projection):
    run.delete_run()
    with pytest.raises(NotFound):
        run.run()
    assert run.run_id not in [state.run_id for state in run.runs()]
    run.refresh_validation(problem_ids, -sketches, policy_version=0, projection=projection)
    ranking = run.score(problem_ids, sketches, policy_version=0, projection=projection)
    # Version 1 again, of another gradient: nothing of the deleted run is remembered.
    assert ranking.validation_version == 1
    assert np.mean(ranking.alignments) < 0


def test_probes_and_pages(scorer):
    with scorer.http() as http:
        assert http.get("/livez").json() == {"status": "alive"}
        assert http.get("/readyz").json() == {"status": "ready"}
        health = http.get("/health").json()
        assert (health["status"], health["compute"], health["store"]) == ("ok", "alive", "reachable")
        for path in ("/", "/docs"):
            page = http.get(path)
            assert page.headers["Content-Type"].startswith("text/html")
            assert "://" not in page.text, "a page loads something from elsewhere"
            assert "default-src 'self'" in page.headers["Content-Security-Policy"]


def test_metrics_count_what_was_done(scorer, run):
    with scorer.http() as http:
        text = http.get("/metrics").text
    assert 'gradalign_requests_total{method="POST",route="/score",status="200"}' in text
    assert "gradalign_score_duration_seconds_bucket" in text
    assert "gradalign_queue_depth 0.0" in text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["gradalign_scored_problems_total"]) >= 8
    assert float(values["gradalign_received_bytes_total"]) > 8 * 32 * 2


def test_openapi_describes_every_route(scorer):
    with scorer.http() as http:
        api = http.get("/openapi.json").json()
    routes = {f"{method.upper()} {path}" for path, methods in api["paths"].items() for method in methods}
    assert routes == {
        "POST /score",
        "POST /refresh_validation",
        "POST /select",
        "GET /runs",
        "GET /runs/{run}",
        "DELETE /runs/{run}",
        "GET /runs/{run}/problems",
        "GET /runs/{run}/problems/{problem_id}",
        "GET /runs/{run}/rounds",
        "GET /runs/{run}/outline",
        "GET /runs/{run}/events",
        "POST /runs/{run}/snapshots/{name}",
        "POST /runs/{run}/snapshots/{name}/restore",
        "GET /livez",
        "GET /readyz",
        "GET /health",
        "GET /metrics",
    }
    score = api["paths"]["/score"]["post"]
    schema = score["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["required"]) == {"run_id", "policy_version", "problem_ids"}
    assert schema["anyOf"] == [
        {"required": ["projection", "sketches"]},
        {"required": ["products", "products_version"]},
        {"required": ["pass_rates", "rollouts"]},
    ]
    assert schema["properties"]["projection"]["anyOf"][0]["required"]
    assert "gradient norms" in schema["properties"]["norms"]["description"]
    reply = score["responses"]["200"]["content"]["application/json"]["schema"]
    assert "reliability" in reply["properties"]
    assert {"400", "401", "409", "413", "415", "422", "429", "503"} <= set(score["responses"])
    assert len(STRATEGIES) == 12
    select = api["paths"]["/select"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert select["properties"]["strategy"]["anyOf"][0]["enum"] == ["posterior"]
