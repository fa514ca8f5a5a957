"""Beliefs about success rates in the store: what commits add, what restarts and refusals leave alone."""

import asyncio

import numpy as np
import pytest

from gradalign import StalePolicy
from gradalign_scorer.posterior.beliefs import Beliefs, observations

IDS = [f"p{i}" for i in range(6)]


def observing(kit, ids, rates, sizes, *, discount=1.0, **more):
    """A commit of pass rates alone."""
    return kit.scores(
        dict.fromkeys(ids, 0.0),
        projection=None,
        of_rates=True,
        observed=observations(rates, sizes),
        discount=discount,
        **more,
    )


def test_a_sequence_of_commits_is_the_recursion(kit):
    """Every commit on a connection of its own, as of a scorer that was started anew."""
    rng = np.random.default_rng(3)
    wanted = dict.fromkeys(IDS, (0.0, 0.0, -1.0))
    for version in range(12):
        ids = [str(i) for i in rng.permutation(IDS)[: rng.integers(1, 7)]]
        sizes = rng.integers(1, 17, len(ids))
        rates = rng.integers(0, sizes + 1) / sizes
        discount = float(rng.choice([0.0, 0.3, 0.5, 1.0]))
        commit = observing(kit, ids, rates, sizes, discount=discount, version=version)
        kit.run(lambda store, commit=commit: store.commit_scores(commit))
        for problem, rate, size in zip(ids, rates, sizes, strict=True):
            s, f, _ = wanted[problem]
            wanted[problem] = (discount * s + size * rate, discount * f + size * (1 - rate), float(version))
    found = kit.run(lambda store: store.load_beliefs(kit.run_id, [*IDS, "unknown"]))
    assert np.column_stack([found.counts, found.versions]) == pytest.approx(
        np.array([*wanted.values(), (0.0, 0.0, -1.0)]), rel=1e-12
    )


def test_commits_at_once_lose_nothing_whatever_their_order(kit):
    async def go(store):
        commits = [observing(kit, IDS, [0.25] * 6, [4] * 6) for _ in range(20)]
        await asyncio.gather(*[store.commit_scores(commit) for commit in commits])
        return await store.load_beliefs(kit.run_id, IDS)

    found = kit.run(go)
    assert found.counts.tolist() == [[20.0, 60.0]] * 6


def test_a_repetition_and_a_refusal_add_nothing(kit):
    async def go(store):
        for _ in range(3):
            await store.commit_scores(observing(kit, IDS[:2], [0.5, 1.0], [8, 8], version=4, request_id="once"))
        with pytest.raises(StalePolicy):
            await store.commit_scores(observing(kit, IDS[:2], [0.5, 1.0], [8, 8], version=3))
        await store.commit_scores(kit.scores({"p0": 0.0}, projection=None, of_rates=True, version=4))
        return await store.load_beliefs(kit.run_id, IDS[:2]), await store.load_run(kit.run_id)

    found, run = kit.run(go)
    assert found.counts.tolist() == [[4.0, 4.0], [8.0, 0.0]]
    assert found.versions.tolist() == [4.0, 4.0]
    assert (run.kind, run.strategy, run.keeps_beliefs) == ("pass_rates", "posterior", True)


def test_a_snapshot_has_them_and_a_deleted_run_leaves_none(kit):
    async def go(store):
        await store.commit_scores(observing(kit, ["a"], [0.5], [8]))
        await store.snapshot(kit.run_id, "one")
        await store.commit_scores(observing(kit, ["a", "b"], [1.0, 1.0], [8, 8]))
        await store.restore(kit.run_id, "one")
        restored = await store.load_beliefs(kit.run_id, ["a", "b"])
        await store.delete_run(kit.run_id)
        await store.commit_scores(kit.scores({"a": 0.5}))
        return restored, await store.load_beliefs(kit.run_id, ["a"]), await store.load_run(kit.run_id)

    restored, after, run = kit.run(go)
    assert restored.counts.tolist() == [[4.0, 4.0], [0.0, 0.0]]
    assert after.counts.tolist() == Beliefs.none(1).counts.tolist()
    assert not run.keeps_beliefs
    assert run.kind == "sketches"


def test_the_largest_request_fits(kit):
    async def go(store):
        ids = [f"{i:04}" for i in range(4096)]
        rates = np.arange(4096) / 4095
        for _ in range(2):
            await store.commit_scores(observing(kit, ids, rates, np.full(4096, 8)))
        return await store.load_beliefs(kit.run_id, ids)

    found = kit.run(go)
    assert found.counts == pytest.approx(2 * observations(np.arange(4096) / 4095, np.full(4096, 8)))
