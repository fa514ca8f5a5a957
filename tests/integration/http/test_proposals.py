"""Features, proposals and decaying validation gradients over the wire, on a real scorer and store."""

import httpx
import numpy as np
import pytest

from gradalign import Client, FeaturesMismatch, Fenced, InvalidValue, NotFound, ValidationMismatch

COUNT, WIDTH = 64, 3
RNG = np.random.default_rng(3)
FEATURES = RNG.standard_normal((COUNT, WIDTH))
IDS = [f"p{i}" for i in range(COUNT)]


@pytest.fixture
def client(scorer, run_id):
    with Client(scorer.url, run_id=run_id, retries=0) as client:
        yield client


@pytest.fixture
def rows(projection):
    """Sketches whose alignment with the first axis is the sign of the first feature, and nearly as strong."""
    table = np.zeros((COUNT, projection.dim), dtype=np.float32)
    table[:, 0] = np.tanh(FEATURES[:, 0])
    table[:, 1] = np.sqrt(1 - table[:, 0] ** 2)
    return table


@pytest.fixture
def run(client, projection):
    """A run whose validation gradient is the first axis."""
    axis = np.eye(1, projection.dim, dtype=np.float32)
    client.refresh_validation(["v"], axis, policy_version=1, projection=projection)
    return client


@pytest.fixture
def learned(run, rows, projection):
    """A run that scored the first half of the problems with their features."""
    half = slice(0, COUNT // 2)
    run.score(IDS[half], rows[half], policy_version=1, projection=projection, features=FEATURES[half])
    return run


def proposed(client, count=8, **settings):
    wanted = {"problem_ids": IDS, "features": FEATURES, "exploration": 0.0, "policy_version": 2, **settings}
    return client.select(count, **wanted)


class TestProposals:
    def test_problems_never_scored_are_picked_by_their_features(self, learned):
        picked = proposed(learned)
        assert picked.explored == []
        assert picked.priorities == sorted(picked.priorities, reverse=True)
        first = {problem_id: FEATURES[i, 0] for i, problem_id in enumerate(IDS)}
        assert min(first[problem_id] for problem_id in picked.selected) > 0.5
        assert any(int(problem_id[1:]) >= COUNT // 2 for problem_id in picked.selected)

    def test_the_same_seed_picks_the_same_and_another_does_not(self, learned):
        learned.snapshot("before")
        first = proposed(learned, exploration=0.5, seed=4)
        learned.restore("before")
        assert proposed(learned, exploration=0.5, seed=4).selected == first.selected
        learned.restore("before")
        assert proposed(learned, exploration=0.5, seed=5).selected != first.selected

    def test_the_exploration_share_is_drawn_from_all_others(self, learned):
        picked = proposed(learned, 16, exploration=3 / 16)
        assert len(picked.explored) == 3
        assert picked.selected[-3:] == picked.explored

    def test_a_run_that_has_learned_nothing_explores(self, run):
        picked = proposed(run, 10)
        assert sorted(picked.explored) == sorted(picked.selected)
        assert picked.priorities == [None] * 10

    def test_picks_are_remembered_and_rest(self, learned):
        first, second = proposed(learned, 8, cooldown=5), proposed(learned, 8, cooldown=5, policy_version=3)
        assert not set(first.selected) & set(second.selected)
        assert learned.problem(first.selected[0]).times_selected == 1

    def test_json_is_taken_too(self, scorer, learned, run_id):
        body = {
            "run_id": run_id,
            "policy_version": 2,
            "count": 8,
            "problem_ids": IDS,
            "features": FEATURES.tolist(),
            "exploration": 0.0,
        }
        learned.snapshot("before")
        reply = httpx.post(f"{scorer.url}/v1/select", json=body)
        learned.restore("before")
        assert reply.json()["selected"] == proposed(learned).selected

    def test_of_a_run_never_seen(self, client):
        with pytest.raises(NotFound):
            proposed(client)


class TestWeights:
    def test_features_pool_evidence_over_similar_problems(self, learned, rows, projection):
        """Two rows that say nothing, of problems never scored: the one like the aligned problems gets the larger weight."""
        mute = np.zeros((2, projection.dim), dtype=np.float32)
        mute[:, 1] = 1
        pair = np.array([[2.0, 0, 0], [-2.0, 0, 0]])
        with_features = learned.score(
            ["x", "y"], mute, policy_version=2, projection=projection, features=pair
        ).weight_of()
        without = learned.score(["z"], mute[:1], policy_version=2, projection=projection).weight_of()
        assert without["z"] == pytest.approx(0.25)
        assert with_features["x"] > 0.3
        assert with_features["y"] < 0.2

    def test_a_repetition_teaches_nothing_twice(self, run, rows, projection):
        fields = {"policy_version": 1, "projection": projection, "features": FEATURES}
        first = run.score(IDS, rows, request_id="once", **fields)
        run.snapshot("once")
        once = proposed(run).priorities
        run.restore("once")
        assert run.score(IDS, rows, request_id="once", **fields) == first
        assert proposed(run).priorities == once
        run.restore("once")
        run.score(IDS, rows, request_id="twice", **fields)
        assert proposed(run).priorities != once


class TestState:
    def test_a_snapshot_keeps_what_was_learned(self, learned, rows, projection):
        learned.snapshot("s")
        before = proposed(learned)
        learned.restore("s")
        turned = rows * np.where(np.arange(projection.dim) == 0, -1, 1).astype(np.float32)
        for version in range(2, 12):
            learned.score(IDS, turned, policy_version=version, projection=projection, features=FEATURES)
        assert proposed(learned, policy_version=12).selected != before.selected
        learned.restore("s")
        after = proposed(learned)
        assert (after.selected, after.priorities) == (before.selected, before.priorities)

    def test_a_deleted_run_has_forgotten_it(self, learned, projection, run_id):
        learned.delete_run()
        axis = np.eye(1, projection.dim, dtype=np.float32)
        learned.refresh_validation(["v"], axis, policy_version=1, projection=projection)
        assert proposed(learned).priorities == [None] * 8


WRONG = {
    "rows too few": (FEATURES[:-1], "features", "shape [63, 3]"),
    "too wide": (np.zeros((COUNT, 65)), "features", "shape [64, 65]"),
    "no columns": ([[]] * COUNT, "features", "shape [64, 0]"),
    "a list": ([1.0] * COUNT, "features", "expected 64 rows"),
    "rows of two lengths": ([[1.0]] * (COUNT - 1) + [[1.0, 2.0]], "features", "expected 64 rows"),
    "text": ([["x"]] * COUNT, "features", "finite numbers"),
    "true": ([[1.0, True]] * COUNT, "features", "finite numbers"),
    "NaN": (np.full((COUNT, 2), np.nan), "features", "features[0][0] is nan"),
    "too large": (np.full((COUNT, 2), 1e4), "features", "spread of about 1"),
}


class TestRefusals:
    @pytest.mark.parametrize("name", WRONG)
    def test_by_the_client_and_by_the_scorer(self, scorer, learned, rows, projection, run_id, name):
        features, param, words = WRONG[name]
        with pytest.raises(InvalidValue) as caught:
            learned.score(IDS, rows, policy_version=1, projection=projection, features=features)
        assert words in str(caught.value)
        body = {"run_id": run_id, "policy_version": 1, "count": 2, "problem_ids": IDS}
        plain = features.tolist() if hasattr(features, "tolist") else features
        if name == "NaN":
            return  # JSON has none
        error = httpx.post(f"{scorer.url}/select", json={**body, "features": plain})
        assert error.status_code == 422, error.text
        assert error.json()["error"]["param"] == param
        assert words in error.json()["error"]["message"]

    def test_features_without_ids(self, learned):
        with pytest.raises(InvalidValue, match="features were sent without problem_ids"):
            learned.select(2, policy_version=1, features=FEATURES)

    def test_a_width_that_changes_within_a_run(self, learned, rows, projection):
        before = learned.run(), learned.rounds()
        for act in (
            lambda: proposed(learned, features=FEATURES[:, :2]),
            lambda: learned.score(IDS, rows, policy_version=1, projection=projection, features=FEATURES[:, :2]),
        ):
            with pytest.raises(FeaturesMismatch, match="features have 2 numbers a problem and the run's have 3"):
                act()
        assert (learned.run(), learned.rounds()) == before


def axis(projection, place, length=1.0):
    row = np.zeros((1, projection.dim), dtype=np.float32)
    row[0, place] = length
    return row


def direction(client, projection):
    """What the run's validation gradient has along the first two axes, by the alignments of these."""
    rows = np.concatenate([axis(projection, 0), axis(projection, 1)])
    ranking = client.score(["a0", "a1"], rows, policy_version=99, projection=projection)
    found = dict(zip(ranking.problem_ids, ranking.alignments, strict=True))
    client.restore("scored")
    return [found["a0"], found["a1"]]


class TestDecay:
    @pytest.fixture
    def refresh(self, client, projection):
        def send(place, length, **fields):
            return client.refresh_validation(
                ["v"],
                axis(projection, place, length),
                policy_version=fields.pop("version", 1),
                projection=projection,
                **fields,
            )

        return send

    def test_the_sum_keeps_the_lengths(self, client, refresh, projection):
        refresh(0, 4.0, decay=0.5)
        assert refresh(1, 1.0, decay=0.5).validation_version == 2
        client.snapshot("scored")
        assert direction(client, projection) == pytest.approx(np.array([2.0, 1.0]) / 5**0.5, abs=1e-6)
        refresh(1, 2.0, decay=0.5)
        client.snapshot("scored")
        assert direction(client, projection) == pytest.approx(np.array([1.0, 2.5]) / 7.25**0.5, abs=1e-6)

    def test_without_decay_it_begins_anew(self, client, refresh, projection):
        refresh(0, 4.0)
        refresh(1, 1.0)
        client.snapshot("scored")
        assert direction(client, projection) == pytest.approx([0.0, 1.0], abs=1e-6)

    def test_a_repetition_decays_once(self, client, refresh, projection):
        refresh(0, 4.0)
        fields = {"decay": 0.5, "request_id": "again"}
        assert refresh(1, 1.0, **fields) == refresh(1, 1.0, **fields)
        client.snapshot("scored")
        assert direction(client, projection) == pytest.approx(np.array([2.0, 1.0]) / 5**0.5, abs=1e-6)

    def test_a_restored_run_goes_on_from_its_own_gradient(self, client, refresh, projection):
        refresh(0, 4.0)
        client.snapshot("s")
        refresh(1, 100.0)
        client.restore("s")
        assert refresh(1, 1.0, decay=0.5, decay_version=1).validation_version == 3
        client.snapshot("scored")
        assert direction(client, projection) == pytest.approx(np.array([2.0, 1.0]) / 5**0.5, abs=1e-6)

    def test_another_version_is_refused(self, client, refresh, projection):
        with pytest.raises(ValidationMismatch, match=r"decay_version is 1 and run .* holds no validation gradient"):
            refresh(0, 1.0, decay=0.5, decay_version=1)
        refresh(0, 1.0)
        refresh(0, 1.0)
        with pytest.raises(ValidationMismatch, match="is at validation version 2; the sum that you keep is of another"):
            refresh(0, 1.0, decay=0.5, decay_version=1)
        assert client.run().validation_version == 2

    def test_a_predecessor_is_fenced_off(self, scorer, run_id, refresh, projection):
        refresh(0, 1.0)
        with Client(scorer.url, run_id=run_id, epoch=2) as heir:
            heir.snapshot("taken")
        with Client(scorer.url, run_id=run_id, epoch=1) as old, pytest.raises(Fenced):
            old.refresh_validation(["v"], axis(projection, 1), policy_version=1, projection=projection, decay=0.5)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [({"decay": 1.5}, "from 0 to 1"), ({"decay": -0.1}, "from 0 to 1"), ({"decay_version": 1}, "without decay")],
    )
    def test_what_is_no_decay(self, refresh, fields, words):
        with pytest.raises(InvalidValue, match=words):
            refresh(0, 1.0, **fields)

    def test_gradients_that_cancel(self, client, refresh):
        refresh(0, 1.0)
        with pytest.raises(InvalidValue, match="decay 1 of the validation gradient before cancels"):
            refresh(0, -1.0, decay=1.0)
        assert client.run().validation_version == 1
