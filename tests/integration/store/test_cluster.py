"""A Redis Cluster of three real primaries: runs that live on each, and one that dies and comes back."""

import asyncio
import tempfile
import uuid
from pathlib import Path

import pytest
from clusters import cluster, free_ports

from gradalign import Unavailable
from gradalign_scorer.store.server.serverstate import ACL_USER


@pytest.fixture(scope="module")
def house():
    """Three primaries, none of which needs the others to serve what it has."""
    settings = {"cluster_require_full_coverage": "no", "cluster_node_timeout": "2000"}
    with tempfile.TemporaryDirectory(prefix="ga-") as folder, cluster(Path(folder), **settings) as made:
        yield made


@pytest.fixture
def kits(kit, house):
    """A run of the test's own on each of the primaries."""
    name = uuid.uuid4().hex
    return [type(kit)(house.url, house.run_on(number, name)) for number in range(3)]


async def fill(store, kits):
    for kit in kits:
        await store.commit_refresh(kit.refresh(1))
        await store.commit_scores(kit.scores({f"p{i}": float(i) for i in range(9)}, request_id="q"))


def test_every_route_of_the_store_works_for_runs_of_all_primaries(kits):
    async def go(store):
        assert await store.check() == ()
        await store.ping()
        await fill(store, kits)
        names = [kit.run_id for kit in kits]
        for kit in kits:
            await store.snapshot(kit.run_id, "s")
            await store.commit_selection(kit.selection(["p1"]))
            await store.restore(kit.run_id, "s")
            assert (await store.outline(kit.run_id, 2, 3)).problems == 9
            page = await store.page_problems(kit.run_id, None, 5)
            assert [row.problem_id for row in page.problems] == ["p8", "p7", "p6", "p5", "p4"]
            assert (await store.problem(kit.run_id, "p1")).times_selected == 0
            assert len((await store.load_problems(kit.run_id)).ids) == 9
        assert [len(rounds) for rounds in await store.recent_rounds(names, 10)] == [3, 3, 3]
        assert [state.run_id for state in await store.run_states(names)] == names
        assert set(names) <= {state.run_id for state in await store.list_runs()}
        assert set(await store.changed_since(0, 100)) >= set(names)
        await store.delete_run(names[0])
        assert (await store.run_states(names))[0] is None
        return await kits[1].dump(store)

    assert "times_scored=1" in kits[0].run(go)


def test_a_request_sent_again_is_applied_once_and_one_without_an_id_never_by_the_library(kits, house):
    """Scripts that a node has forgotten are loaded again where the keys are; nothing ran before."""

    async def go(store):
        await fill(store, kits)
        for node in house.nodes:
            node.plain.script_flush()
        for kit in kits:
            await store.commit_scores(kit.scores({"p1": 0.5}))
            await asyncio.gather(*(store.commit_scores(kit.scores({"p1": 0.5}, request_id="again")) for _ in range(9)))
        return [(await store.problem(kit.run_id, "p1")).times_scored for kit in kits]

    assert kits[0].run(go) == [3, 3, 3]


def test_runs_on_other_primaries_are_served_while_one_is_dead_and_its_own_when_it_is_back(kits, house):
    names = house.node_of("gradalign:runs")
    dead = next(number for number in range(3) if number != names)
    node, kit = house.nodes[dead], kits[dead]

    async def go(store):
        await fill(store, kits)
        node.kill()
        for number, other in enumerate(kits):
            if number != dead:
                await store.commit_scores(other.scores({"p1": 0.5}, request_id="while"))
        with pytest.raises(Unavailable, match="does not answer") as caught:
            await store.commit_scores(kit.scores({"p1": 0.5}, request_id="lost"))
        assert caught.value.retry_after == 1.0
        with pytest.raises(Unavailable):
            await store.commit_scores(kit.scores({"p1": 0.5}))
        (warning,) = await store.check()
        assert node.place in warning
        assert "no run that lives there can be written" in warning
        node.start()
        await until_served(store, kit.scores({"p1": 0.5}, request_id="lost"))
        assert await store.check() == ()
        return [(await store.problem(each.run_id, "p1")).times_scored for each in kits]

    assert kit.run(go) == [2, 2, 2]


async def until_served(store, commit):
    for _ in range(600):
        try:
            return await store.commit_scores(commit)
        except Unavailable:
            await asyncio.sleep(0.05)
    raise AssertionError("it was not served again")


def test_a_run_whose_slot_moves_to_a_new_node_is_followed_there_and_written_once_all_the_while(kit, tmp_path):
    """MOVED and ASK say that nothing ran; the commit runs once, where the slot is."""
    with cluster(tmp_path, primaries=1) as house:
        follow(type(kit)(house.url, kit.run_id), house)


def follow(kit, house):
    source = house.nodes[0]
    slot = source.plain.execute_command("CLUSTER KEYSLOT", f"gradalign:{{{kit.run_id}}}:meta")

    async def served(store, problems):
        """How many commits without an id were acknowledged; the others say to come again."""
        done = await asyncio.gather(
            *(store.commit_scores(kit.scores({p: 0.5, "all": 0.5})) for p in problems), return_exceptions=True
        )
        refused = [each for each in done if each != b"reply"]
        assert all(isinstance(each, Unavailable) and each.retry_after for each in refused), refused
        return len(done) - len(refused)

    async def go(store):
        await fill(store, [kit])
        count = await served(store, "abcdefgh")
        target = house.add()
        house.join(target)
        for _ in moves(source, target, slot):
            count += await served(store, "abc")
        assert await served(store, "abcdefgh") == 8
        assert (await store.problem(kit.run_id, "all")).times_scored == count + 8
        return count

    assert kit.run(go) >= 8


def moves(source, target, slot):
    """Moves a slot with its keys, as `valkey-cli --cluster reshard` does, and stops behind each step."""
    ids = [node.plain.execute_command("CLUSTER MYID").decode() for node in (source, target)]
    target.plain.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
    source.plain.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
    yield
    while keys := source.plain.execute_command("CLUSTER GETKEYSINSLOT", slot, 3):
        source.plain.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        yield
    for node in (target, source):
        node.plain.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[1])


def test_the_advised_user_is_all_that_a_cluster_needs(kits, house):
    for node in house.nodes:
        node.plain.execute_command(*ACL_USER.replace("PASSWORD", "p,@ss").split())
        node.plain.acl_log_reset()

    async def go(store):
        assert await store.check() == ()
        await fill(store, kits)
        return len(await store.list_runs())

    assert kits[0].run(go, url=house.url.replace("://", "://gradalign:p,@ss@")) >= 3
    refused = [entry["object"] for node in house.nodes for entry in node.plain.acl_log()]
    assert [each for each in refused if each != "client|setinfo"] == []


def test_what_is_no_cluster_or_not_as_one_is_named(kit, house, tmp_path):
    def refused(url, words):
        async def go(store):
            for act in (store.check(), store.commit_refresh(kit.refresh(1))):
                with pytest.raises(Unavailable, match=words) as caught:
                    await act
                assert "secret" not in caught.value.message

        kit.run(go, url=url)

    refused(house.url.replace("://", "://nobody:secret@"), "give user and password in GRADALIGN_REDIS_URL")
    refused(f"redis+cluster://:secret@127.0.0.1:{free_ports(1)[0]}", "does not answer")
    place = house.nodes[0].place

    async def single(store):
        with pytest.raises(Unavailable, match=r"of 3 primaries: begin GRADALIGN_REDIS_URL with redis\+cluster://"):
            await store.check()

    kit.run(single, url=f"redis://{place}")


def test_a_single_server_named_as_a_cluster_is_named(kit, tmp_path):
    from clusters import Node

    (port,) = free_ports(1)
    node = Node(tmp_path / "one", port, save="")
    try:

        async def go(store):
            with pytest.raises(Unavailable, match="a server of its own: begin GRADALIGN_REDIS_URL with redis://"):
                await store.check()

        kit.run(go, url=f"redis+cluster://{node.place}")
    finally:
        node.end()
