"""Runs of products, over a real scorer and store."""

import asyncio
import json

import msgpack
import numpy as np
import pytest
from productruns import COUNT, FEATURES, GOOD, IDS, PRODUCTS, ROLLOUTS, SUMS, TRUSTED, refresh

from gradalign import (
    AsyncClient,
    Client,
    RequestIdReused,
)


class TestScoring:
    def test_a_ranking_by_the_sums_best_first(self, run):
        ranking = run.score(IDS, select=8, **GOOD)
        sums = dict(zip(IDS, SUMS, strict=True))
        assert ranking.problem_ids == sorted(IDS, key=lambda i: (-sums[i], i))
        assert ranking.alignments == pytest.approx(sorted(SUMS, reverse=True))
        assert ranking.priorities == ranking.alignments
        assert ranking.alignment_kind == "product"
        assert (ranking.norms, ranking.reliability, ranking.advised_dim) == (None, None, None)
        assert ranking.no_signal == ["p7"]
        assert ranking.weight_of()["p7"] == 0.0
        errors = np.sqrt(ROLLOUTS * PRODUCTS.var(axis=1, ddof=1))
        by_id = dict(zip(ranking.problem_ids, ranking.standard_errors, strict=True))
        assert [by_id[i] for i in IDS] == pytest.approx(errors)
        assert ranking.rollout_reliability == pytest.approx(1 - np.mean(errors**2) / SUMS.var(ddof=1))
        assert ranking.rollout_weights is None
        state = run.run()
        assert (state.kind, state.alignment_kind, state.projection) == ("products", "product", None)
        assert state.rollout_reliability == ranking.rollout_reliability
        assert state.products_quotient == pytest.approx(1.0)

    def test_a_refresh_answers_its_quotient(self, client):
        reply = refresh(client, lengths=[1.9])
        assert (reply.validation_version, reply.problems, reply.coherence) == (1, 5, None)
        assert reply.products_quotient == pytest.approx(2.0 / 1.9)
        norms = [0.8, 0.8, 0.8, 0.8, 0.4]
        reply = refresh(client, norms=norms)
        assert reply.coherence == pytest.approx((4 * 0.5 + 1.0) / 5)
        assert client.run().coherence == reply.coherence
        refresh(client, norms=norms, norms_kind="head")
        assert client.run().coherence is None

    def test_an_earlier_gradient_that_is_carried_adds_to_the_length(self, client):
        assert refresh(client, lengths=6.5, carried=4.5).products_quotient == pytest.approx(1.0)
        # The unit of products is what the problems themselves add, so weights are as without an earlier gradient.
        weights = client.score(IDS, **GOOD).weights
        refresh(client, lengths=2.0)
        assert client.score(IDS, **{**GOOD, "products_version": 2}).weights == pytest.approx(weights)
        assert refresh(client, lengths=1.0, carried=-1.0).products_quotient == pytest.approx(1.0)

    def test_exact_norms_make_cosines(self, run):
        norms = 2 * np.abs(SUMS) + 0.5
        ranking = run.score(IDS, **GOOD, norms=norms)
        wanted = dict(zip(IDS, SUMS / norms, strict=True))
        assert ranking.alignment_kind == "cosine"
        assert ranking.alignments == pytest.approx([wanted[i] for i in ranking.problem_ids])
        dots = run.score(IDS, **GOOD, norms=norms, strategy="dot")
        assert dots.priorities == pytest.approx(sorted(SUMS, reverse=True))
        by_norm = run.score(IDS, **GOOD, norms=norms, strategy="norm")
        assert by_norm.priorities == pytest.approx(sorted(norms, reverse=True))

    def test_norms_of_the_head_make_quotients(self, run):
        ranking = run.score(IDS, **GOOD, norms=np.full(COUNT, 0.1), norms_kind="head")
        assert ranking.alignment_kind == "head"
        assert ranking.alignments == pytest.approx(sorted(SUMS / 0.1, reverse=True))
        assert max(ranking.alignments) > 1

    @pytest.mark.parametrize(
        "strategy", ["cosine", "dot", "anti", "accgreedy", "accuracy_band", "cosine_accuracy", "random", "shrunken"]
    )
    def test_strategies_that_need_no_sketch(self, run, strategy):
        rates = np.linspace(0, 1, COUNT)
        ranking = run.score(IDS, **GOOD, strategy=strategy, pass_rates=rates, select=4)
        assert sorted(ranking.problem_ids) == sorted(IDS)
        assert ranking.priorities == sorted(ranking.priorities, reverse=True)
        assert run.run().strategy == strategy

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_problem_that_is_not_finite_is_rejected_by_name(self, run, bad):
        products = PRODUCTS.copy()
        products[3, 2] = bad
        ranking = run.score(IDS, **{**GOOD, "products": products}, rollout_weights=True)
        assert [row.problem_id for row in ranking.rejected] == ["p3"]
        assert "NaN" in ranking.rejected[0].reason
        assert "p3" not in ranking.problem_ids
        assert len(ranking.problem_ids) == len(ranking.rollout_weights) == COUNT - 1

    def test_ragged_groups_and_rollout_weights_in_the_replys_order(self, run):
        groups = {"a": [0.1, -0.3], "b": [0.9], "c": [0.0, 0.0, 0.0], "d": [0.2, 0.2, 0.3, -0.1]}
        fields = {"policy_version": 1, "products": list(groups.values()), "products_version": 1}
        ranking = run.score(list(groups), **fields, rollout_weights=True)
        assert ranking.problem_ids == ["b", "d", "c", "a"]
        assert [len(each) for each in ranking.rollout_weights] == [1, 4, 3, 2]
        weights = dict(zip(ranking.problem_ids, ranking.rollout_weights, strict=True))
        assert weights["c"] == [0.0] * 3
        assert weights["a"][0] > 0.25 > weights["a"][1] == 0.0
        assert all(0 <= w <= 1 for each in ranking.rollout_weights for w in each)
        errors = dict(zip(ranking.problem_ids, ranking.standard_errors, strict=True))
        assert errors["b"] is None
        assert errors["c"] == 0.0

    def test_shrunken_weights(self, run):
        run.snapshot("before")
        plain = run.score(IDS, **GOOD)
        run.restore("before")
        drawn = run.score(IDS, **GOOD, shrink_weights=True)
        assert drawn.alignments == plain.alignments
        assert drawn.weights != plain.weights

    def test_json_and_an_empty_bin_and_the_header_alone_say_the_same(self, scorer, run, run_id):
        header = {"run_id": run_id, "policy_version": 1, "problem_ids": IDS, "products": PRODUCTS.tolist()}
        header["products_version"] = 1
        packed = msgpack.packb(header)
        kinds = [
            (packed, "application/msgpack"),
            (packed + b"\xc4\x00", "application/msgpack"),
            (json.dumps(header).encode(), "application/json"),
        ]
        run.snapshot("before")
        with scorer.http() as http:
            replies = []
            for body, kind in kinds:
                replies.append(http.post("/v1/score", content=body, headers={"Content-Type": kind}).json())
                run.restore("before")
        assert replies[0] == replies[1] == replies[2]
        assert replies[0]["problem_ids"] == run.score(IDS, **GOOD).problem_ids

    def test_the_asynchronous_client(self, scorer, run_id):
        async def both():
            async with AsyncClient(scorer.url, run_id=run_id, retries=0) as client:
                reply = await client.refresh_validation(TRUSTED, policy_version=1, products=[[1.0]] * 5, lengths=5.0)
                fields = {"products": PRODUCTS, "products_version": reply.validation_version}
                return await client.score(IDS, policy_version=1, rollout_weights=True, **fields)

        assert len(asyncio.run(both()).rollout_weights) == COUNT


class TestState:
    def test_evidence_moves_the_weights(self, run):
        for _ in range(4):
            run.score(["good", "bad"], policy_version=1, products=[[1.0, 1.1], [-1.0, -1.1]], products_version=1)
        fields = {"policy_version": 1, "products": [[0.0, 0.1]] * 3, "products_version": 1}
        weights = run.score(["good", "bad", "new"], **fields).weight_of()
        assert weights["good"] > weights["new"] > weights["bad"]

    def test_the_unit_of_the_gradients_changes_no_weight(self, scorer, run_id):
        replies = []
        for factor in (1.0, 1e-9, 1e9):
            with Client(scorer.url, run_id=f"{run_id}-{len(replies)}", retries=0) as other:
                refresh(other, products=np.full((5, 4), 0.1 * factor), lengths=2.0 * factor)
                fields = {**GOOD, "products": PRODUCTS * factor, "features": FEATURES, "rollout_weights": True}
                other.score(IDS, **fields)
                replies.append(other.score(IDS, **fields))
                picked = other.select(8, policy_version=2, problem_ids=IDS, features=FEATURES, exploration=0.0)
                assert min(FEATURES[int(i[1:]), 0] for i in picked.selected) > 0
        for reply in replies[1:]:
            assert reply.weight_of() == pytest.approx(replies[0].weight_of(), rel=1e-4, abs=1e-4)
            assert reply.problem_ids == replies[0].problem_ids

    def test_features_propose_problems_never_scored(self, run):
        half = slice(0, COUNT // 2)
        fields = {**GOOD, "products": PRODUCTS[half]}
        run.score(IDS[half], **fields, features=FEATURES[half])
        picked = run.select(8, policy_version=2, problem_ids=IDS, features=FEATURES, exploration=0.0)
        assert min(FEATURES[int(i[1:]), 0] for i in picked.selected) > 0.3
        assert any(int(i[1:]) >= COUNT // 2 for i in picked.selected)

    def test_priorities_of_all_rounds(self, run):
        run.score(IDS[:32], **{**GOOD, "products": PRODUCTS[:32]})
        run.score(IDS[32:], **{**GOOD, "products": PRODUCTS[32:]})
        picked = run.select(5, policy_version=1, exploration=0.0, cooldown=0)
        assert picked.selected == [IDS[i] for i in np.argsort(-SUMS)[:5]]
        assert run.problems(limit=1).problems[0].problem_id == picked.selected[0]
        assert run.outline(ends=2).best[0].alignment == pytest.approx(max(SUMS), rel=1e-6)

    def test_a_snapshot_is_the_whole_of_it(self, run):
        run.score(IDS, **GOOD)
        run.snapshot("s")
        before = run.run()
        refresh(run, lengths=1.5, policy_version=3)
        run.score(IDS, policy_version=3, products=-PRODUCTS, products_version=2)
        assert run.run().products_quotient == pytest.approx(2 / 1.5)
        run.restore("s")
        after = run.run()
        for name in ("kind", "alignment_kind", "validation_version", "products_quotient", "rollout_reliability"):
            assert getattr(after, name) == getattr(before, name)
        first = run.score(IDS, **GOOD)
        assert first.validation_version == 1

    def test_a_repetition_is_answered_from_its_first_reply(self, run):
        first = run.score(IDS, **GOOD, request_id="once", rollout_weights=True)
        assert run.score(IDS, **GOOD, request_id="once", rollout_weights=True) == first
        assert run.problem("p0").times_scored == 1
        again = refresh(run, request_id="r")
        assert refresh(run, request_id="r") == again
        assert run.run().validation_version == again.validation_version == 2
        with pytest.raises(RequestIdReused):
            run.score(IDS, **{**GOOD, "products": -PRODUCTS}, request_id="once")

    def test_another_scorer_goes_on_with_the_run(self, run, start_scorer, run_id):
        first = run.score(IDS, **GOOD)
        with Client(start_scorer().url, run_id=run_id, retries=0) as other:
            assert other.score(IDS, **GOOD).problem_ids == first.problem_ids

    def test_rounds_and_metrics_show_it(self, run, scorer, run_id):
        ranking = run.score(IDS, **GOOD)
        refreshed, scored = run.rounds()
        assert refreshed.summary["products_quotient"] == pytest.approx(1.0)
        assert "coherence" not in refreshed.summary
        assert scored.summary["rollout_reliability"] == ranking.rollout_reliability
        assert scored.summary["alignment_quantiles"][-1] == pytest.approx(max(SUMS))
        with scorer.http() as http:
            lines = http.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("gradalign_rollout_reliability{") and run_id in line]
        assert float(found[0].split()[-1]) == pytest.approx(ranking.rollout_reliability)

    def test_noise_is_warned_of(self, run):
        products = np.random.default_rng(6).standard_normal((2048, 8))
        run.score([f"n{i}" for i in range(2048)], policy_version=1, products=products, products_version=1)
        warnings = {warning.kind: warning.message for warning in run.run().warnings}
        assert "nothing to rank here" in warnings["nothing_to_rank"]
        refresh(run, lengths=1.6)
        assert "1.25 times" in {w.kind: w.message for w in run.run().warnings}["products_off"]
