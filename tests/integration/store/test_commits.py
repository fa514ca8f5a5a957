"""What each commit writes, and that a refused one writes nothing."""

import math

import numpy as np
import pytest

from gradalign import (
    FeaturesMismatch,
    Fenced,
)
from gradalign_scorer.ranking.predictor import HALF_LIFE, Moments
from gradalign_scorer.store import VersionTakenError


def test_scores_accumulate_in_a_problem(kit):
    async def go(store):
        for version, alignment in enumerate([0.5, -0.25, 1.0, 0.0, 0.125, 0.25, 0.75]):
            selected = np.array([version in (1, 4)])
            await store.commit_scores(kit.scores({"p": alignment}, version=10 * version, selected=selected))
        return await store.problem(kit.run_id, "p"), await store.load_problems(kit.run_id, ["p", "unknown"])

    state, columns = kit.run(go)
    assert (state.times_scored, state.times_selected, state.policy_version) == (7, 2, 60)
    assert (state.alignment, state.priority) == (0.75, 0.75)
    assert [(h["policy_version"], h["alignment"]) for h in state.history] == [
        (10, -0.25), (20, 1.0), (30, 0.0), (40, 0.125), (50, 0.25), (60, 0.75),
    ]  # fmt: skip
    expected = sum(0.9 ** (6 - i) * a for i, a in enumerate([0.5, -0.25, 1.0, 0.0, 0.125, 0.25, 0.75]))
    assert columns.column("evidence_sum")[0] == pytest.approx(expected, rel=1e-6)
    assert columns.column("evidence_weight")[0] == pytest.approx(sum(0.9**i for i in range(7)), rel=1e-6)
    assert columns.column("selected_version").tolist() == [40, -1]
    assert columns.column("times_scored").tolist() == [7, 0]


def test_a_row_without_signal_or_validation_is_no_evidence(kit):
    async def go(store):
        signal = np.array([False, True, True])
        commit = kit.scores({"zero": 0.0, "unknown": math.nan, "real": 0.5}, signal=signal, priorities=np.zeros(3))
        await store.commit_scores(commit)
        return await store.load_problems(kit.run_id, ["zero", "unknown", "real"]), await store.load_run(kit.run_id)

    columns, run = kit.run(go)
    assert columns.column("evidence_weight").tolist() == [0, 0, 1]
    assert columns.column("times_scored").tolist() == [1, 1, 1]
    assert (run.spread().mean, run.spread().deviation) == (0.5, 0.0)


def test_the_spread_of_the_run_is_discounted_by_request(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"a": 0.0, "b": 1.0}))
        await store.commit_scores(kit.scores({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}))
        await store.commit_scores(kit.scores({"e": 0.0}, signal=np.array([False])))
        return await store.load_run(kit.run_id)

    spread = kit.run(go).spread()
    mean, deviation = spread.mean, spread.deviation
    weights, values = np.array([0.9, 0.9, 1, 1, 1, 1]), np.array([0, 1, 0.5, 0.5, 0.5, 0.5])
    assert mean == pytest.approx(np.average(values, weights=weights))
    assert deviation == pytest.approx(math.sqrt(np.average((values - mean) ** 2, weights=weights)))


def test_a_pass_rate_that_is_not_sent_stays(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"a": 0.0, "b": 0.0}, pass_rates=np.array([0.25, 1.0])))
        await store.commit_scores(kit.scores({"a": 0.5}))
        return [(await store.problem(kit.run_id, i)).pass_rate for i in "ab"]

    assert kit.run(go) == [0.25, 1.0]


def test_the_run_remembers_the_strategy_last_named_and_its_figures(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"a": 0.0}, version=2**53 - 1, epoch=3, reliability=0.75))
        before = await store.run_state(kit.run_id)
        await store.commit_scores(kit.scores({"a": 0.0}, version=2**53 - 1, strategy="anti"))
        await store.commit_scores(kit.scores({"b": 0.0}, version=2**53 - 1))
        return before, await store.run_state(kit.run_id)

    before, after = kit.run(go)
    assert (before.strategy, before.epoch, before.policy_version) == ("cosine", 3, 2**53 - 1)
    assert (after.strategy, after.epoch, after.reliability) == ("anti", 3, 0.75)
    assert (after.problems, after.rounds) == (2, 3)
    assert after.projection == kit.projection.to_map()
    assert before.created_at == after.created_at <= after.updated_at


def test_the_largest_request_fits_and_every_row_is_its_own(kit):
    values = {f"problem-{i}": (i - 2000) / 4096 for i in range(4096)}

    async def go(store):
        await store.commit_scores(kit.scores(values))
        await store.commit_scores(kit.scores(dict(reversed(values.items())), version=1))
        return await store.load_problems(kit.run_id)

    columns = kit.run(go)
    found = dict(zip(columns.ids, columns.column("alignment"), strict=True))
    assert found == values
    assert set(columns.column("times_scored")) == {2}


def test_refreshes_flip_the_version_and_keep_the_last_few(kit):
    async def go(store):
        for number in range(1, 12):
            await store.commit_refresh(kit.refresh(number, version=number))
        run = await store.load_run(kit.run_id)
        held = [await store.load_validation(kit.run_id, number) for number in range(1, 13)]
        return run, [record and (record.version, record.policy_version, record.vector[0]) for record in held]

    run, held = kit.run(go)
    assert (run.validation_version, run.validation_counter) == (11, 11)
    assert held == [None] * 3 + [(n, n, n) for n in range(4, 12)] + [None]


def test_a_version_is_taken_once(kit):
    async def go(store):
        await store.commit_refresh(kit.refresh(1))
        with pytest.raises(VersionTakenError):
            await store.commit_refresh(kit.refresh(1, version=5))
        return await store.run_state(kit.run_id)

    state = kit.run(go)
    assert (state.validation_version, state.policy_version, state.rounds) == (1, 0, 1)
    assert (state.validation_problems, state.coherence, state.validation_policy_version) == (3, 0.5, 0)


def test_a_picked_problem_cools_down_even_if_never_scored(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"a": 0.5}, version=3))
        await store.commit_selection(kit.selection(["a", "new"], version=4))
        await store.commit_selection(kit.selection(["a"], version=5))
        page = await store.page_problems(kit.run_id, None, 10)
        return await store.load_problems(kit.run_id, ["a", "new"]), page, await store.problem(kit.run_id, "new")

    columns, page, new = kit.run(go)
    assert columns.column("selected_version").tolist() == [5, 4]
    assert columns.column("times_selected").tolist() == [2, 1]
    assert columns.column("policy_version").tolist() == [3, -1]
    assert [row.problem_id for row in page.problems] == ["a"]
    assert (new.times_scored, new.history) == (0, [])


def test_a_higher_epoch_takes_the_run_over(kit):
    async def go(store):
        await store.commit_scores(kit.scores({"p": 0.5}, epoch=1))
        await store.commit_scores(kit.scores({"p": 0.6}, epoch=2))
        with pytest.raises(Fenced):
            await store.commit_scores(kit.scores({"p": 0.7}, epoch=1))
        await store.commit_scores(kit.scores({"p": 0.8}))
        return await store.problem(kit.run_id, "p")

    state = kit.run(go)
    assert (state.times_scored, state.alignment) == (3, pytest.approx(0.8))


def test_moments_add_up_and_older_ones_fade(kit):
    first, second = (Moments.of(np.full((512, 2), x), np.full(512, x)) for x in (1.0, 2.0))

    async def go(store):
        for version, moments in enumerate((first, second)):
            await store.commit_scores(kit.scores({"a": 0.5}, version=version, moments=moments))
        await store.commit_scores(kit.scores({"a": 0.5}, version=2))
        return await store.load_moments(kit.run_id)

    held, kept = kit.run(go), 0.5 ** (512 / HALF_LIFE)
    assert held.count == pytest.approx(512 * kept + 512)
    assert held.gram == pytest.approx(first.gram * kept + second.gram)


def test_moments_of_another_width_change_nothing(kit):
    wide, narrow = (Moments.of(np.ones((3, width)), np.ones(3)) for width in (3, 2))

    async def go(store):
        await store.commit_scores(kit.scores({"a": 0.5}, moments=wide))
        before = await kit.dump(store)
        with pytest.raises(FeaturesMismatch, match="have 2 numbers a problem and the run's have 3"):
            await store.commit_scores(kit.scores({"a": 0.9}, moments=narrow))
        assert await kit.dump(store) == before

    kit.run(go)


def test_a_refresh_from_a_gradient_that_is_no_longer_current_is_computed_again(kit):
    async def go(store):
        await store.commit_refresh(kit.refresh(1))
        await store.snapshot(kit.run_id, "s")
        await store.commit_refresh(kit.refresh(2))
        await store.restore(kit.run_id, "s")
        with pytest.raises(VersionTakenError):
            await store.commit_refresh(kit.refresh(3, base=2))
        await store.commit_refresh(kit.refresh(3, base=1))
        return (await store.load_run(kit.run_id)).validation_version

    assert kit.run(go) == 3


def test_evidence_counts_by_its_strength(kit):
    async def go(store):
        for version, (alignment, strength) in enumerate([(0.3, 0.5), (-0.1, 0.1), (0.2, 0.0)]):
            commit = kit.scores({"p": alignment}, version=version, strength=strength, evidence_kept=0.97)
            await store.commit_scores(commit)
        return await store.load_problems(kit.run_id, ["p"])

    columns = kit.run(go)
    assert columns.column("evidence_sum")[0] == pytest.approx(0.97 * (0.97 * 0.15 - 0.01), rel=1e-6)
    assert columns.column("evidence_weight")[0] == pytest.approx(0.97 * (0.97 * 0.25 + 0.01), rel=1e-6)


def test_likeness_is_the_mean_cosine_of_validation_problems_over_refreshes(kit):
    """Of n unit vectors whose mean has norm c, two different ones have the mean cosine (n c^2 - 1)/(n - 1)."""

    async def go(store):
        seen = [(await store.load_run(kit.run_id))]
        for number, (problems, coherence) in enumerate([(1, 1.0), (5, 0.6), (3, 0.4), (11, 1.0)], 1):
            await store.commit_refresh(kit.refresh(number, problems=problems, coherence=coherence))
            seen.append((await store.load_run(kit.run_id)).strength)
        return seen[1:]

    second = 0.2  # (5 * 0.36 - 1) / 4
    third = 0.8 * second  # (3 * 0.16 - 1) / 2 is less than nothing
    wanted = [1.0, second**0.5, third**0.5, (0.8 * third + 0.2) ** 0.5]
    assert kit.run(go) == pytest.approx(wanted)
