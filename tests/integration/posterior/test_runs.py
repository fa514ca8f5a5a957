"""Runs of pass rates, and beliefs in runs of other kinds, over a real scorer and store."""

import asyncio
import json

import msgpack
import numpy as np
import pytest

from gradalign import AsyncClient, Client, InvalidValue, KindMismatch, StalePolicy

IDS = [f"p{i}" for i in range(60)]
RATES = np.round(np.linspace(0, 1, 60) * 8) / 8
SIZES = [8] * 60
GOOD = {"policy_version": 1, "pass_rates": RATES, "rollouts": SIZES}


@pytest.fixture
def client(scorer, run_id):
    with Client(scorer.url, run_id=run_id, retries=0) as client:
        yield client


def believed(client, ids=("p0", "p30", "p59")):
    return [client.problem(problem_id).belief for problem_id in ids]


class TestScoring:
    def test_a_ranking_by_the_chance_of_a_signal(self, client):
        ranking = client.score(IDS, **GOOD, select=5)
        assert ranking.strategy == "posterior"
        assert ranking.priorities == sorted(ranking.priorities, reverse=True)
        rates = dict(zip(IDS, RATES, strict=True))
        assert all(rates[i] == 0.5 for i in ranking.selected)
        assert ranking.no_signal == [i for i in ranking.problem_ids if rates[i] in (0, 1)]
        assert ranking.weight_of() == {i: float(0 < rate < 1) for i, rate in rates.items()}
        assert (ranking.alignments, ranking.norms, ranking.reliability) == (None, None, None)
        assert (ranking.validation_version, ranking.alignment_kind) == (None, None)
        state = client.run()
        assert (state.kind, state.strategy, state.problems, state.projection) == ("pass_rates", "posterior", 60, None)
        assert client.problem("p30").alignment is None
        assert client.rounds()[0].summary["mean_pass_rate"] == pytest.approx(RATES.mean())

    def test_beliefs_add_up_with_a_discount_and_without(self, client):
        for discount in (1.0, 1.0, None, 0.25):
            client.score(IDS, **GOOD, discount=discount)
        kept = ((8 + 8) * 0.5 + 8) * 0.25 + 8
        assert believed(client) == [[1, 1 + kept], [1 + kept * RATES[30], 1 + kept * (1 - RATES[30])], [1 + kept, 1]]

    @pytest.mark.parametrize("strategy", ["accgreedy", "accuracy_band", "random"])
    def test_the_other_strategies_without_gradients(self, client, strategy):
        client.score(IDS, **GOOD)
        ranking = client.score(IDS, **GOOD, strategy=strategy)
        assert sorted(ranking.problem_ids) == sorted(IDS)
        assert client.run().strategy == strategy
        assert believed(client, ["p59"]) == [[1 + 8 * 0.5 + 8, 1]]

    def test_json_and_an_empty_bin_and_the_header_alone_say_the_same(self, scorer, client, run_id):
        client.score(["other"], pass_rates=[0.5], rollouts=[8], policy_version=0)
        header = {"run_id": run_id, "policy_version": 1, "problem_ids": IDS}
        header |= {"pass_rates": RATES.tolist(), "rollouts": SIZES}
        client.snapshot("before")
        replies = []
        for body, kind in [
            (msgpack.packb(header), "application/msgpack"),
            (msgpack.packb(header) + b"\xc4\x00", "application/msgpack"),
            (json.dumps(header).encode(), "application/json"),
        ]:
            with scorer.http() as http:
                replies.append(http.post("/v1/score", content=body, headers={"Content-Type": kind}).json())
            client.restore("before")
        assert replies[0] == replies[1] == replies[2]
        assert replies[0]["problem_ids"] == client.score(IDS, **GOOD).problem_ids

    def test_the_asynchronous_client(self, scorer, run_id):
        async def both():
            async with AsyncClient(scorer.url, run_id=run_id, retries=0) as client:
                await client.score(IDS, **GOOD)
                return await client.select(3, policy_version=1, strategy="posterior")

        assert len(asyncio.run(both()).selected) == 3


class TestSelecting:
    def test_a_draw_prefers_what_is_solved_now_and_then_and_repeats(self, client):
        for _ in range(4):
            client.score(IDS, **GOOD, discount=1.0)
        rates = dict(zip(IDS, RATES, strict=True))
        drawn = []
        for seed in range(5):
            ask = {"policy_version": 1, "seed": seed, "exploration": 0.0, "cooldown": 0, "half_life": 1e9}
            picked = client.select(10, **ask)
            assert client.select(10, **ask).selected == picked.selected
            drawn += [rates[i] for i in picked.selected]
            assert picked.priorities == sorted(picked.priorities, reverse=True)
            assert all(-0.5 <= priority <= 0 for priority in picked.priorities)
            assert picked.explored == []
        # Of a problem solved always, or never, in 32 a draw comes below .6 in 5e-8 of all draws.
        assert all(0 < rate < 1 for rate in drawn)
        # The draws are another in each run: one of an eighth, or of seven eighths, is among the ten now and then.
        assert sum(0.125 < rate < 0.875 for rate in drawn) > 45
        assert client.select(10, **{**ask, "seed": 99}).selected != picked.selected

    def test_problems_never_tried_are_drawn_too_and_stale_beliefs_fade(self, client):
        client.score(["solved"], pass_rates=[1.0], rollouts=[64], policy_version=0)
        ask = {"problem_ids": ["solved", "new"], "exploration": 0.0, "cooldown": 0}
        picked = [client.select(1, policy_version=v, half_life=1e9, **ask).selected[0] for v in range(20)]
        # A uniform rate is worth less than that of the solved one by a chance of about .03: 9 of 20 in 1e-9 of all runs.
        assert picked.count("new") > 11
        # Both uniform now: never in 20 is a chance of 1e-6.
        faded = [client.select(1, policy_version=1000 + v, half_life=1.0, **ask).selected[0] for v in range(20)]
        assert "solved" in faded

    def test_a_request_id_gets_its_first_draw_again(self, client):
        client.score(IDS, **GOOD)
        first = client.select(4, policy_version=1, request_id="pick")
        assert client.select(4, policy_version=1, request_id="pick") == first
        assert [r.kind for r in client.rounds()] == ["score", "select"]


class TestOtherKinds:
    def test_a_run_of_sketches_keeps_beliefs_where_it_is_asked_to(self, client, problem_ids, sketches, projection):
        spec = {"policy_version": 0, "projection": projection, "pass_rates": [0.5] * 8, "rollouts": [4] * 8}
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        plain = client.score(problem_ids, sketches, **spec)
        assert believed(client, ["p0"]) == [None]
        with pytest.raises(InvalidValue, match="keeps none; send discount"):
            client.select(2, policy_version=0, strategy="posterior")
        asked = client.score(problem_ids, sketches, **spec, discount=1.0)
        assert asked.alignments == plain.alignments
        assert believed(client, ["p0"]) == [[3.0, 3.0]]
        drawn = client.select(2, policy_version=0, strategy="posterior", exploration=0.0, cooldown=0)
        assert all(-0.5 <= priority <= 0 for priority in drawn.priorities)
        best = client.select(1, policy_version=0, exploration=0.0, cooldown=0)  # by alignments, as ever
        assert best.selected == plain.problem_ids[:1]
        ranking = client.score(problem_ids, sketches, **spec, strategy="posterior")
        assert len(set(ranking.priorities)) == 1
        assert believed(client, ["p0"]) == [[1 + 2 * 0.5 + 2] * 2]

    def test_a_run_of_products_does_too(self, client):
        client.refresh_validation(["v"], products=[[1.0]], lengths=1.0, policy_version=0)
        spec = {"products": [[0.5, -0.5], [0.1, 0.2]], "products_version": 1, "policy_version": 0}
        ranking = client.score(["a", "b"], **spec, pass_rates=[0.5, 0.0], rollouts=[2, 2], strategy="posterior")
        assert ranking.problem_ids == ["a", "b"]
        assert believed(client, "ab") == [[2.0, 2.0], [1.0, 3.0]]

    @pytest.mark.parametrize("sent", ["sketches", "products"])
    def test_a_run_of_pass_rates_takes_no_gradients(self, client, problem_ids, sketches, projection, sent):
        client.score(IDS, **GOOD)
        rows = {"sketches": sketches, "projection": projection} if sent == "sketches" else {"products": [[1.0]] * 8}
        more = {} if sent == "sketches" else {"products_version": 1}
        with pytest.raises(KindMismatch, match="is a run of pass_rates alone") as caught:
            client.score(problem_ids, policy_version=1, **rows, **more)
        assert caught.value.param == sent
        refresh = {"lengths": 1.0} if sent == "products" else {}
        with pytest.raises(KindMismatch, match="Send pass_rates alone"):
            client.refresh_validation(problem_ids, policy_version=1, **rows, **refresh)
        assert client.run().rounds == 1

    def test_a_run_of_sketches_takes_no_pass_rates_alone(self, client, problem_ids, sketches, projection):
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        with pytest.raises(KindMismatch, match=r"pass_rates alone were sent and run .* is a run of sketches"):
            client.score(IDS, **GOOD)

    def test_features_teach_a_run_of_pass_rates_nothing(self, client):
        client.score(IDS, **GOOD)
        with pytest.raises(InvalidValue, match="learns nothing of them") as caught:
            client.select(1, policy_version=1, problem_ids=["p0"], features=[[0.5]])
        assert caught.value.param == "features"


def test_a_snapshot_brings_beliefs_back(client):
    client.score(IDS, **GOOD)
    before = believed(client)
    client.snapshot("here")
    client.score(IDS, **{**GOOD, "policy_version": 9})
    with pytest.raises(StalePolicy):
        client.score(IDS, **GOOD)
    client.restore("here")
    assert believed(client) == before
    client.delete_run()
    client.score(["p0"], pass_rates=[0.0], rollouts=[8], policy_version=0)
    assert believed(client, ["p0"]) == [[1.0, 9.0]]
