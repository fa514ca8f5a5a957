"""A primary and its replica under three real Sentinels: found through them, and followed to where it goes."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from clusters import free_ports, sentinels, until

from gradalign import Unavailable
from gradalign_scorer.store.server.serverstate import ACL_USER

_SENTINEL_USER = "ACL SETUSER gradalign on >PASSWORD +@connection +sentinel|masters"


@pytest.fixture(scope="module")
def house():
    """A primary, a replica and three Sentinels."""
    with tempfile.TemporaryDirectory(prefix="ga-") as folder, sentinels(Path(folder)) as made:
        yield made


@pytest.fixture
def own(kit, house):
    """A kit on that store."""
    return type(kit)(house.url, kit.run_id)


async def until_served(store, commit):
    """How many times it was refused before."""
    for refused in range(600):
        try:
            await store.commit_scores(commit)
        except Unavailable:
            await asyncio.sleep(0.05)
        else:
            return refused
    raise AssertionError("it was not served again")


def test_the_primary_is_found_and_followed_when_a_replica_is_made_one(own, house):
    """Scripts, which the replica has never seen, are loaded; what is sent again is applied once."""

    async def go(store):
        assert await store.check() == ()
        await store.ping()
        await store.commit_refresh(own.refresh(1))
        await asyncio.gather(*(store.commit_scores(own.scores({"p": 0.5}, request_id=f"q{i}")) for i in range(9)))
        before = house.primary()
        house.sentinels[0].plain.execute_command("SENTINEL FAILOVER", "store")
        until(lambda: house.primary() is not before)
        for i in range(9):
            await until_served(store, own.scores({"p": 0.5}, request_id=f"q{i}"))
        await until_served(store, own.scores({"p": 0.5}, request_id="new"))
        return (await store.problem(own.run_id, "p")).times_scored

    assert own.run(go) == 10


def test_a_sentinel_that_is_away_is_passed_over(own, house):
    places = f"127.0.0.1:{free_ports(1)[0]},{house.sentinels[1].place}"

    async def go(store):
        assert await store.check() == ()
        await store.commit_scores(own.scores({"p": 0.5}))

    own.run(go, url=f"redis+sentinel://{places}/store")


def test_what_no_sentinel_knows_is_named_without_a_password(own, house):
    def refused(url, *words):
        async def go(store):
            with pytest.raises(Unavailable) as caught:
                await store.commit_scores(own.scores({"p": 0.5}))
            assert all(word in caught.value.message for word in words), caught.value.message
            assert "secret" not in caught.value.message

        own.run(go, url=url)

    login = house.url.replace("://", "://u:secret@")
    refused(login.replace("/store/", "/other/"), "no Sentinel names a primary", "'other'", "name of the service")
    refused(login + "?sentinel_password=secret", "no Sentinel names a primary", "password")
    refused(f"redis+sentinel://:secret@127.0.0.1:{free_ports(1)[0]}/store", "no Sentinel names a primary")
    refused(login, "give user and password in GRADALIGN_REDIS_URL")


def test_servers_and_sentinels_have_users_of_their_own(own, house):
    for server in house.servers:
        server.plain.execute_command(*ACL_USER.replace("PASSWORD", "of-server").split())
    for sentinel in house.sentinels:
        sentinel.plain.execute_command(*_SENTINEL_USER.replace("PASSWORD", "of-sentinel").split())
    url = house.url.replace("://", "://gradalign:of-server@")

    async def go(store):
        assert await store.check() == ()
        await store.commit_refresh(own.refresh(1))
        return (await store.run_state(own.run_id)).validation_version

    assert own.run(go, url=f"{url}?sentinel_username=gradalign&sentinel_password=of-sentinel") == 1
    assert _SENTINEL_USER in (Path(__file__).parents[3] / "docs/operations.md").read_text()
