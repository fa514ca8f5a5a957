"""Snapshots: a run goes back whole, and what must never go back does not."""

import numpy as np
import pytest

from gradalign import Fenced, NotFound, StalePolicy
from gradalign_scorer.ranking.predictor import Moments

MOMENTS = Moments.of(np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]]), np.array([0.5, -0.5, 0.0]))


async def fill(kit, store, version):
    await store.commit_refresh(kit.refresh(1 + (await validation_counter(kit, store)), version=version))
    await store.commit_scores(
        kit.scores({"a": 0.5, "b": -0.5, "c": 0.0}, version=version, strategy="dot", moments=MOMENTS)
    )
    await store.commit_selection(kit.selection(["a"], version=version))


async def validation_counter(kit, store):
    run = await store.load_run(kit.run_id)
    return run.validation_counter if run else 0


def without_the_restore(dump):
    """A dump with its last round, the restore's own, and the count of rounds taken off."""
    head, _, _ = dump.partition(", RoundRecord(round=4")
    return head.replace("('rounds', '4')", "('rounds', '3')").rstrip("])")


def test_a_restored_run_is_the_one_that_was_saved(kit):
    async def go(store):
        await fill(kit, store, 5)
        before = await kit.dump(store)
        await store.snapshot(kit.run_id, "step-5")
        assert await kit.dump(store) == before
        await fill(kit, store, 8)
        await store.commit_scores(kit.scores({"a": 0.1, "new": 1.0}, version=9, strategy="anti"))
        await store.restore(kit.run_id, "step-5")
        return before, await kit.dump(store), await store.rounds(kit.run_id, 3, 10)

    before, after, rounds = kit.run(go)
    after = after.replace("('validation_counter', '2')", "('validation_counter', '1')")
    assert without_the_restore(after) == before.rstrip("])")
    assert [(r.round, r.kind, r.policy_version, r.summary) for r in rounds] == [
        (4, "restore", 5, {"snapshot": "step-5"})
    ]


def test_the_policy_goes_back_and_the_epoch_does_not(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"a": 0.5}, version=5, epoch=1))
        await store.snapshot(kit.run_id, "s", epoch=1)
        await store.commit_scores(kit.scores({"a": 0.5}, version=9, epoch=2))
        with pytest.raises(StalePolicy):
            await store.commit_scores(kit.scores({"a": 0.5}, version=6, epoch=2))
        with pytest.raises(Fenced):
            await store.restore(kit.run_id, "s", epoch=1)
        await store.restore(kit.run_id, "s", epoch=3)
        with pytest.raises(Fenced):
            await store.commit_scores(kit.scores({"a": 0.5}, version=6, epoch=2))
        await store.commit_scores(kit.scores({"a": 0.5}, version=6, epoch=3))
        return await store.run_state(kit.run_id)

    state = kit.run(go)
    assert (state.policy_version, state.epoch) == (6, 3)


def test_validation_versions_are_never_used_twice(kit):
    async def go(store):
        await store.commit_refresh(kit.refresh(1))
        await store.snapshot(kit.run_id, "s")
        await store.commit_refresh(kit.refresh(2))
        await store.restore(kit.run_id, "s")
        run = await store.load_run(kit.run_id)
        assert (run.validation_version, run.validation_counter) == (1, 2)
        assert await store.load_validation(kit.run_id, 2) is None
        await store.commit_refresh(kit.refresh(3))
        return (await store.load_validation(kit.run_id, 3)).vector[0]

    assert kit.run(go) == 3


def test_a_restore_forgets_the_replies_it_undid_and_keeps_the_others(kit):
    async def go(store):
        async def send(name):
            return await store.commit_scores(kit.scores({name: 0.5}, request_id=name, reply=b"again"))

        for name in ("before", "early"):
            await store.commit_scores(kit.scores({name: 0.5}, request_id=name, reply=b"first"))
        await store.snapshot(kit.run_id, "s")
        await store.commit_scores(kit.scores({"undone": 0.5}, request_id="undone", reply=b"first"))
        await store.restore(kit.run_id, "s")
        await store.commit_scores(kit.scores({"later": 0.5}, request_id="later", reply=b"first"))
        run = await store.load_run(kit.run_id)
        assert await store.stored_reply(run, "undone", b"content") is None
        first = [await send(name) for name in ("before", "undone", "later")]
        await store.snapshot(kit.run_id, "t")
        await store.restore(kit.run_id, "t")  # undoes nothing, and forgets nothing that an earlier restore undid
        second = [await send(name) for name in ("before", "early", "undone", "later")]
        counts = [(await store.problem(kit.run_id, n)).times_scored for n in ("before", "early", "undone", "later")]
        return first, second, counts

    first, second, counts = kit.run(go)
    assert first == [b"first", b"again", b"first"]
    assert second == [b"first", b"first", b"again", b"first"]
    assert counts == [1, 1, 1, 1]


def test_a_snapshot_of_the_same_name_replaces_the_earlier_one(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"a": 0.5}))
        await store.snapshot(kit.run_id, "latest")
        await store.commit_scores(kit.scores({"b": 0.5}))
        await store.snapshot(kit.run_id, "latest")
        await store.commit_scores(kit.scores({"c": 0.5}))
        await store.restore(kit.run_id, "latest")
        return sorted((await store.load_problems(kit.run_id)).ids)

    assert kit.run(go) == ["a", "b"]


def test_a_snapshot_can_be_restored_again_and_again(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"a": 0.5}))
        await store.snapshot(kit.run_id, "s")
        for _ in range(3):
            await store.commit_scores(kit.scores({"a": 0.75, "b": 0.5}))
            await store.restore(kit.run_id, "s")
        return await store.problem(kit.run_id, "a"), (await store.load_problems(kit.run_id)).ids

    state, ids = kit.run(go)
    assert (state.times_scored, state.alignment, ids) == (1, 0.5, ["a"])


def test_what_is_not_there_is_named(kit):
    async def go(store):
        with pytest.raises(NotFound, match="there is no run"):
            await store.snapshot(kit.run_id, "s")
        await store.commit_scores(kit.scores({"a": 0.5}))
        with pytest.raises(NotFound, match="no snapshot 's'"):
            await store.restore(kit.run_id, "s")

    kit.run(go)


def test_deletion_takes_the_snapshots_along_and_old_replies_count_no_more(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"a": 0.5}, request_id="q", epoch=2))
        await store.snapshot(kit.run_id, "s")
        with pytest.raises(Fenced):
            await store.delete_run(kit.run_id, epoch=1)
        await store.delete_run(kit.run_id, epoch=2)
        left = [key async for key in store._redis.scan_iter(match=f"*{kit.run_id}*")]
        with pytest.raises(NotFound):
            await store.delete_run(kit.run_id)
        listed = [run.run_id for run in await store.list_runs()]
        await store.commit_scores(kit.scores({"a": 0.25}, request_id="q"))
        with pytest.raises(NotFound):
            await store.restore(kit.run_id, "s")
        return left, listed, await store.problem(kit.run_id, "a")

    left, listed, state = kit.run(go)
    assert [key.rsplit(b":", 1)[-1] for key in left] == [b"q"]
    assert kit.run_id not in listed
    assert (state.times_scored, state.alignment) == (1, 0.25)
