"""Commits that the store refuses: none of them leaves anything behind."""

import pytest

from gradalign import (
    Fenced,
    KindMismatch,
    NotFound,
    Projection,
    ProjectionMismatch,
    RequestIdReused,
    StalePolicy,
)
from gradalign_scorer.store import ValidationGoneError

OTHER = Projection(dim=8, seed=1, parameters="ab" * 32)
REFUSED = {
    "lower epoch": (Fenced, {"epoch": 4, "version": 9}, "epoch 4 was sent and the run has seen epoch 5"),
    "older policy": (StalePolicy, {"version": 6}, "policy_version 6 was sent and the run has seen 7"),
    "other projection": (ProjectionMismatch, {"version": 9, "projection": OTHER}, r"seed=1; the run's with seed=0"),
    "reused id": (RequestIdReused, {"version": 7, "request_id": "used", "digest": b"other"}, "'used' was used before"),
    "fenced retry": (Fenced, {"version": 7, "request_id": "used", "epoch": 4}, "has taken this run over"),
}


CASES = [(commit, reason) for commit in ("scores", "refresh", "selection") for reason in REFUSED]
CASES.remove(("selection", "other projection"))  # it has no sketches


@pytest.mark.parametrize(("commit", "reason"), CASES)
def test_a_refused_commit_writes_nothing(kit, commit, reason):
    error, changes, message = REFUSED[reason]
    subject = {"scores": {"p": 0.9, "q": 0.1}, "refresh": 2, "selection": ["p", "q"]}[commit]

    async def go(store):
        await store.commit_refresh(kit.refresh(1, version=7, epoch=5))
        await store.commit_scores(kit.scores({"p": 0.5}, version=7, request_id="used"))
        before = await kit.dump(store)
        attempt = getattr(kit, commit)(subject, **changes)
        with pytest.raises(error, match=message):
            await getattr(store, f"commit_{commit}")(attempt)
        return before, await kit.dump(store)

    before, after = kit.run(go)
    assert before == after


PRODUCTS = {"projection": None, "alignment_kind": "product"}
RACES = {
    "products into sketches": ({}, PRODUCTS, r"products were sent and run '.*' is a run of sketches"),
    "sketches into products": (PRODUCTS, {}, r"sketches were sent and run '.*' is a run of products"),
    "products over norms": (PRODUCTS, {**PRODUCTS, "alignment_kind": "cosine"}, r"are cosines .* are products \(without"),
    "products over heads": (
        {**PRODUCTS, "alignment_kind": "cosine"}, {**PRODUCTS, "alignment_kind": "head"}, r"norms of the head .* cosines",
    ),
}  # fmt: skip


@pytest.mark.parametrize("race", RACES)
def test_of_two_first_requests_of_other_kinds_the_second_is_refused(kit, race):
    """Both were checked while there was no run; the store's own check is the last."""
    first, second, message = RACES[race]

    async def go(store):
        await store.commit_scores(kit.scores({"p": 0.5}, **first))
        before = await kit.dump(store)
        with pytest.raises(KindMismatch, match=message):
            await store.commit_scores(kit.scores({"q": 0.5}, **second))
        return before, await kit.dump(store)

    before, after = kit.run(go)
    assert before == after


def test_scores_against_a_validation_that_is_gone_are_refused(kit):
    async def go(store):
        await store.commit_refresh(kit.refresh(1))
        before = await kit.dump(store)
        with pytest.raises(ValidationGoneError):
            await store.commit_scores(kit.scores({"p": 0.5}, validation_version=2))
        await store.commit_scores(kit.scores({"p": 0.5}, validation_version=1))
        return before

    assert "'p'" not in kit.run(go)


def test_a_refused_first_commit_begins_no_run(kit):
    async def go(store):
        with pytest.raises(ValidationGoneError):
            await store.commit_scores(kit.scores({"p": 0.5}, validation_version=1))
        with pytest.raises(NotFound, match="there is no run"):
            await store.commit_selection(kit.selection(["p"]))
        assert await store.load_run(kit.run_id) is None
        return [run.run_id for run in await store.list_runs()]

    assert kit.run_id not in kit.run(go)
