"""What the routes read: pages of problems, rounds, runs, and all problems at once."""

import numpy as np
import pytest

from gradalign import InvalidValue, NotFound, Unavailable
from gradalign_scorer.store import EmbeddedServer, RunStore
from gradalign_scorer.store.keys import RUNS, RunKeys


async def pages(kit, store, limit, between=None):
    rows, cursor = [], None
    while True:
        page = await store.page_problems(kit.run_id, cursor, limit)
        assert len(page.problems) <= limit
        rows += page.problems
        if (cursor := page.next) is None:
            return rows
        if between:
            await between()


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_pages_list_every_problem_once_best_first_ties_by_id(kit, limit):
    values = {f"p{i:02d}é,": round(i % 5 / 4 - 0.5, 3) for i in range(21)}

    async def go(store):
        await store.commit_scores(kit.scores(values))
        return await pages(kit, store, limit)

    rows = kit.run(go)
    assert [row.problem_id for row in rows] == sorted(values, key=lambda i: (-values[i], i))
    assert [row.priority for row in rows] == sorted(values.values(), reverse=True)


def left_unsorted(store):
    """The same store, as if its process were killed right behind each reply."""
    store._sorting.soon = lambda run_id: None
    return store


def test_an_order_that_was_left_behind_is_put_right_by_whoever_reads_it(kit):
    async def go(store):
        killed = left_unsorted(RunStore.connect(kit.url))
        for version in range(3):
            await killed.commit_scores(
                kit.scores({f"p{i}": float((i * 7 + version) % 10) for i in range(10)}, version=version)
            )
        await killed.commit_scores(kit.scores({"p3": 100.0, "new": -1.0}, version=3))
        await killed.close()
        assert await store._redis.llen(RunKeys(kit.run_id).unsorted) == 4
        outline = await store.outline(kit.run_id, 2, 3)
        rows = await pages(kit, store, 4)
        assert not await store._redis.exists(RunKeys(kit.run_id).unsorted)
        return rows, outline, await store.run_state(kit.run_id)

    rows, outline, state = kit.run(go)
    wanted = {f"p{i}": float((i * 7 + 2) % 10) for i in range(10)} | {"p3": 100.0, "new": -1.0}
    assert [row.problem_id for row in rows] == sorted(wanted, key=lambda i: (-wanted[i], i))
    assert [row.priority for row in rows] == sorted(wanted.values(), reverse=True)
    assert [row.problem_id for row in outline.best] == ["p3", rows[1].problem_id]
    assert state.problems == 11


def test_an_order_is_put_right_without_a_reader(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"a": 1.0, "b": 2.0}))
        await store.commit_scores(kit.scores({"b": 0.5}))
        await store.settle()
        return await store._redis.zrange(RunKeys(kit.run_id).priorities, 0, -1, withscores=True)

    assert kit.run(go) == [(b"a", -1.0), (b"b", -0.5)]


def test_what_waits_to_be_put_in_order_is_part_of_a_snapshot_and_goes_with_a_deletion(kit):
    async def go(store):
        killed = left_unsorted(RunStore.connect(kit.url))
        await killed.commit_scores(kit.scores({"a": 1.0, "b": 2.0}))
        await killed.snapshot(kit.run_id, "s")
        await store.commit_scores(kit.scores({"a": 5.0, "later": 3.0}))
        await store.settle()
        await killed.restore(kit.run_id, "s")
        restored = [row.problem_id for row in await pages(kit, store, 10)], (await store.run_state(kit.run_id)).problems
        await killed.commit_scores(kit.scores({"ghost": 1.0}))
        await killed.delete_run(kit.run_id)
        await killed.close()
        await store.commit_scores(kit.scores({"c": 0.0}))
        return restored, [row.problem_id for row in await pages(kit, store, 10)]

    assert kit.run(go) == ((["b", "a"], 2), ["c"])


def test_a_store_that_takes_no_writes_shows_the_order_as_it_is(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"a": 1.0, "b": 2.0}))
        await store.settle()
        await left_unsorted(store).commit_scores(kit.scores({"a": 3.0}))
        await store._redis.config_set("maxmemory", 1)
        try:
            behind = [row.problem_id for row in await pages(kit, store, 10)]
        finally:
            await store._redis.config_set("maxmemory", 0)
        return behind, [row.problem_id for row in await pages(kit, store, 10)]

    with EmbeddedServer(None) as server:
        assert kit.run(go, url=server.url) == (["b", "a"], ["a", "b"])


def test_a_problem_that_stays_is_on_one_page_whatever_moves(kit):
    ids = [f"p{i:03d}" for i in range(60)]
    moving, moves = set(ids[::3]), iter(np.random.default_rng(0).normal(size=1000))

    async def go(store):
        await store.commit_scores(kit.scores(dict(zip(ids, np.linspace(1, -1, 60), strict=True))))
        version = 0

        async def between():
            nonlocal version
            version += 1
            await store.commit_scores(kit.scores({i: next(moves) for i in sorted(moving)}, version=version))

        return await pages(kit, store, 4, between)

    stayed = [row.problem_id for row in kit.run(go) if row.problem_id not in moving]
    assert stayed == [i for i in ids if i not in moving]


def test_an_empty_run_has_one_empty_page(kit):
    async def go(store):
        await store.commit_refresh(kit.refresh(1))
        return await store.page_problems(kit.run_id, None, 10)

    page = kit.run(go)
    assert (page.problems, page.next) == ([], None)


def test_what_is_unknown_is_named(kit):
    async def go(store):
        for read in (
            lambda: store.page_problems(kit.run_id, None, 10),
            lambda: store.rounds(kit.run_id, 0, 10),
            lambda: store.problem(kit.run_id, "p"),
            lambda: store.run_state(kit.run_id),
        ):
            with pytest.raises(NotFound, match="there is no run"):
                await read()
        await store.commit_scores(kit.scores({"p": 0.5}))
        with pytest.raises(NotFound, match="knows no problem 'q'"):
            await store.problem(kit.run_id, "q")
        with pytest.raises(InvalidValue, match="cursor is '17'"):
            await store.page_problems(kit.run_id, "17", 10)

    kit.run(go)


def test_rounds_are_numbered_and_paged(kit):
    async def go(store):
        await store.commit_refresh(kit.refresh(1, version=1))
        for version in (2, 3, 4):
            await store.commit_scores(kit.scores({"p": 0.5}, version=version))
        first = await store.rounds(kit.run_id, 0, 3)
        return first, await store.rounds(kit.run_id, first[-1].round, 3)

    first, rest = kit.run(go)
    assert [(r.round, r.kind, r.policy_version) for r in first + rest] == [
        (1, "refresh", 1), (2, "score", 2), (3, "score", 3), (4, "score", 4),
    ]  # fmt: skip
    assert len(first) == 3


def test_runs_are_listed_the_last_changed_first(kit):
    other = type(kit)(kit.url, kit.run_id + "-b")

    async def go(store):
        for one in (kit, other, kit):
            await store.commit_scores(one.scores({"p": 0.5}))
        ours = [run.run_id for run in await store.list_runs() if run.run_id.startswith(kit.run_id)]
        # A crash between listing the name and the commit leaves a name alone: it must not show.
        await store._redis.sadd(RUNS, kit.run_id + "-ghost")
        return ours, [run.run_id for run in await store.list_runs() if run.run_id.startswith(kit.run_id)]

    expected = [kit.run_id, other.run_id]
    assert kit.run(go) == (expected, expected)


def test_a_run_whose_name_was_lost_is_listed_again_by_its_next_commit(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"p": 0.5}))
        await store._redis.srem(RUNS, kit.run_id)
        await store.commit_scores(kit.scores({"p": 0.5}))
        return [run.run_id for run in await store.list_runs()]

    assert kit.run_id in kit.run(go)


def test_all_problems_are_read_however_many_parts_that_takes(kit):
    async def go(store):
        for part in range(7):
            await store.commit_scores(kit.scores({f"p{part}-{i}": i / 4096 for i in range(4096)}))
        return await store.load_problems(kit.run_id), await store.load_problems(
            kit.run_id, [f"p{part}-{i}" for i in range(4096) for part in range(8)]
        )

    every, asked = kit.run(go)
    assert len(set(every.ids)) == len(every.ids) == 7 * 4096
    assert dict(zip(every.ids, every.column("priority"), strict=True))["p6-1024"] == 0.25
    assert asked.column("times_scored").tolist() == [1, 1, 1, 1, 1, 1, 1, 0] * 4096


def test_a_damaged_validation_gradient_is_found(kit):
    async def go(store):
        await store.commit_refresh(kit.refresh(1))
        key = RunKeys(kit.run_id).validations
        packed = bytearray(await store._redis.hget(key, "1"))
        packed[-1] ^= 0x10
        await store._redis.hset(key, "1", bytes(packed))
        with pytest.raises(Unavailable, match="fails its checksum"):
            await store.load_validation(kit.run_id, 1)

    kit.run(go)
