"""Products that a scorer refuses: of another kind, version or form; the run stays as it was."""

import json

import msgpack
import numpy as np
import pytest
from productruns import COUNT, GOOD, IDS, PRODUCTS, SUMS, refresh

from gradalign import (
    Client,
    Fenced,
    InvalidValue,
    KindMismatch,
    StalePolicy,
    ValidationMismatch,
)


def unchanged(run, act, error, words):
    """The act is refused in these words, and nothing is stored."""
    before = run.run(), run.rounds()
    with pytest.raises(error, match=words) as caught:
        act()
    assert (run.run(), run.rounds()) == before
    return caught.value


class TestConflicts:
    def test_sketches_into_a_run_of_products(self, run, problem_ids, sketches, projection):
        words = "sketches were sent and run .* is a run of products; a run is of one kind"
        fields = {"policy_version": 1, "projection": projection}
        unchanged(run, lambda: run.score(problem_ids, sketches, **fields), KindMismatch, words)
        error = unchanged(run, lambda: run.refresh_validation(problem_ids, sketches, **fields), KindMismatch, words)
        assert (error.status, error.type, error.param) == (409, "kind_mismatch", "sketches")

    def test_products_into_a_run_of_sketches(self, client, problem_ids, sketches, projection):
        client.refresh_validation(problem_ids, sketches, policy_version=1, projection=projection)
        words = "products were sent and run .* is a run of sketches"
        unchanged(client, lambda: client.score(IDS, **GOOD), KindMismatch, words)
        unchanged(client, lambda: refresh(client), KindMismatch, words)
        client.delete_run()
        assert refresh(client).validation_version == 1

    def test_alignments_of_another_kind(self, run):
        run.score(IDS, **GOOD)
        exact = {"norms": np.full(COUNT, 2.0)}
        unchanged(run, lambda: run.score(IDS, **GOOD, **exact), KindMismatch, "are cosines .*; the run's are products")
        head = {**exact, "norms_kind": "head"}
        unchanged(run, lambda: run.score(IDS, **GOOD, **head), KindMismatch, "over norms of the head")
        assert run.score(IDS, **GOOD).alignment_kind == "product"

    def test_products_of_another_version(self, run):
        refresh(run)
        words = "products_version is 1 and run .* is at validation version 2; take them with"
        unchanged(run, lambda: run.score(IDS, **GOOD), ValidationMismatch, words)

    def test_products_before_any_refresh(self, client):
        with pytest.raises(ValidationMismatch, match="holds no validation gradient"):
            client.score(IDS, **GOOD)
        assert client.run_id not in [state.run_id for state in client.runs()]

    def test_an_older_policy_and_an_older_epoch(self, scorer, run, run_id):
        run.score(IDS, **{**GOOD, "policy_version": 4})
        unchanged(run, lambda: run.score(IDS, **GOOD), StalePolicy, "may not go backwards")
        with Client(scorer.url, run_id=run_id, epoch=2) as heir:
            heir.snapshot("taken")
        with Client(scorer.url, run_id=run_id, epoch=1) as old:
            unchanged(run, lambda: old.score(IDS, **{**GOOD, "policy_version": 4}), Fenced, "taken this run over")


class TestRefusals:
    @pytest.mark.parametrize("lengths", [4.1, 0.9, 1e-6, 1e20])
    def test_products_that_do_not_add_up(self, run, lengths):
        words = "add up to 2 and lengths, the norm of their gradient, is .* expected a quotient of 1"
        unchanged(run, lambda: refresh(run, lengths=lengths), InvalidValue, words)

    @pytest.mark.parametrize("lengths", [3.9, 1.01])
    def test_within_a_half_and_twice_they_are_taken(self, run, lengths):
        assert refresh(run, lengths=lengths).products_quotient == pytest.approx(2 / lengths)

    def test_products_and_what_is_carried_that_do_not_add_up(self, run):
        words = "add up to 2, with the carried part to 5 more, and lengths, the norm of their gradient, is 3;"
        unchanged(run, lambda: refresh(run, lengths=3.0, carried=5.0), InvalidValue, words)

    def test_products_against_the_gradient(self, run):
        unchanged(run, lambda: refresh(run, products=np.full((5, 4), -0.1)), InvalidValue, "not -1")

    def test_validation_without_a_signal(self, run):
        unchanged(run, lambda: refresh(run, products=np.zeros((5, 4))), InvalidValue, "none of the 5")
        nothing = np.full((5, 4), np.nan)
        unchanged(run, lambda: refresh(run, products=nothing), InvalidValue, "5 hold NaN")

    def test_a_validation_problem_with_nan_is_named_and_left_out(self, run):
        products = np.full((5, 4), 0.1)
        products[2, 1] = np.nan
        reply = refresh(run, products=products)
        assert [row.problem_id for row in reply.rejected] == ["v2"]
        assert (reply.problems, reply.products_quotient) == (4, pytest.approx(0.8))

    @pytest.mark.parametrize("strategy", ["learnalign", "diverse"])
    def test_strategies_that_compare_gradients(self, run, strategy):
        words = f"strategy '{strategy}' compares the gradients of the candidates with one another"
        unchanged(run, lambda: run.score(IDS, **GOOD, strategy=strategy), InvalidValue, words)

    def test_norm_without_norms(self, run):
        words = "no norms were sent with the products"
        error = unchanged(run, lambda: run.score(IDS, **GOOD, strategy="norm"), InvalidValue, words)
        assert error.param == "norms"

    def test_norms_that_the_products_exceed(self, run):
        norms = np.full(COUNT, 2.0)
        norms[9] = abs(SUMS[9]) / 2
        words = r"products\[9\] add up to .* and norms\[9\] is"
        unchanged(run, lambda: run.score(IDS, **GOOD, norms=norms), InvalidValue, words)

    def test_shrunken_needs_several_rollouts(self, run, scorer, run_id, problem_ids, sketches, projection):
        fields = {"policy_version": 1, "products": [[1.0], [2.0]], "products_version": 1, "strategy": "shrunken"}
        unchanged(run, lambda: run.score(["a", "b"], **fields), InvalidValue, "products of several rollouts")
        with Client(scorer.url, run_id=f"{run_id}-s", retries=0) as other:
            other.refresh_validation(problem_ids, sketches, policy_version=1, projection=projection)
            ask = {"policy_version": 1, "projection": projection, "strategy": "shrunken"}
            unchanged(other, lambda: other.score(problem_ids, sketches, **ask), InvalidValue, "sketches do not")

    def test_neither_and_both(self, run, sketches, problem_ids, projection):
        with pytest.raises(InvalidValue, match="or products"):
            run.score(IDS, policy_version=1)
        with pytest.raises(InvalidValue, match="both sketches and products"):
            run.score(problem_ids, sketches, projection=projection, **{**GOOD, "products": PRODUCTS[:8]})

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"products_version": ...}, "products_version"),
            ({"products": [[1.0]] * 3}, "products"),
            ({"products": [[]] * COUNT}, "products[0]"),
            ({"products": [[1.0, "x"]] * COUNT}, "products[0][1]"),
            ({"norms_kind": "exact"}, "norms_kind"),
            ({"projection": {}}, "projection"),
            ({"dtype": "float16"}, "dtype"),
            ({"lengths": 1.0}, "lengths"),
        ],
    )
    def test_bodies_of_other_clients(self, scorer, run, run_id, change, param):
        good = {"run_id": run_id, "policy_version": 1, "problem_ids": IDS, "products": PRODUCTS.tolist()}
        header = {**good, "products_version": 1, **change}
        header = {key: value for key, value in header.items() if value is not ...}
        before = run.run(), run.rounds()
        with scorer.http() as http:
            for body, kind in ((msgpack.packb(header), "msgpack"), (json.dumps(header).encode(), "json")):
                reply = http.post("/score", content=body, headers={"Content-Type": f"application/{kind}"})
                assert reply.status_code == 422, reply.text
                assert reply.json()["error"]["param"] == param
        assert (run.run(), run.rounds()) == before
