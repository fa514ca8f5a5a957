"""The rows of a verl batch: groups, shares of tokens, what goes to the scorer, and what weights come back."""

import pytest
import torch

from gradalign.errors import GradAlignError
from gradalign.wire.replies import Ranking
from gradalign_trainer.adapters.verl.v1.rows import COLUMNS, batch_rows


def jagged(rows):
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def info(name, trusted=""):
    return {"index": 0, "problem_id": name, "gradalign": trusted}


MASKS = [[1, 1, 1], [1, 0], [1, 1], [1, 1, 1, 1], [0], [1, 1]]


def columns():
    """Problem a in rows 0 and 2, a again under another uid in row 5; t, trusted, in rows 1 and 3; row 4 fills up."""
    return {
        "uid": ["u1", "u2", "u1", "u2", "pad9", "u3"],
        "extra_info": [info("a"), info("t", "trusted"), info("a"), info("t", "trusted"), info("a"), info("a")],
        "response_mask": jagged(MASKS),
        "loss_mask": jagged(MASKS),
        "advantages": jagged([[1.0] * len(mask) for mask in MASKS]),
        "rm_scores": jagged([[0.0] * (len(mask) - 1) + [float(row)] for row, mask in enumerate(MASKS)]),
    }


TAGS = [{"is_padding": row == 4} for row in range(6)]


def rows():
    return batch_rows(columns(), TAGS)


def test_rows_of_a_uid_are_a_group_and_the_first_of_a_problem_counts():
    found = rows()
    assert found.problem_ids == ["a", "t", "a", "t", "", "a"]
    assert found.trusted.tolist() == [False, True, False, True, False, False]
    assert [(group.problem_id, list(group.rows), group.tokens) for group in found.groups] == [
        ("a", [0, 2], 5),
        ("t", [1, 3], 5),
    ]
    assert [group.pass_rate for group in found.groups] == [1.0, 1.0]  # means of 0 and 2, and of 1 and 3, clipped


def test_rows_that_fill_up_are_of_no_problem():
    plain = batch_rows(columns(), [{} for _ in TAGS])
    assert plain.problem_ids[4] == "a"  # told apart by the tag alone
    assert rows().shares(trusted=False)[4] == 0


def test_shares_are_one_over_the_tokens_of_the_group():
    found = rows()
    torch.testing.assert_close(found.shares(trusted=False), torch.tensor([0.2, 0, 0.2, 0, 0, 0]))
    torch.testing.assert_close(found.shares(trusted=True), torch.tensor([0, 0.2, 0, 0.2, 0, 0]))
    torch.testing.assert_close(found.shares(trusted=True, pooled=True), torch.tensor([0.0, 1, 0, 1, 0, 0]))


def test_a_group_without_a_token_that_counts_is_none():
    given = columns() | {"response_mask": jagged([[0] * len(mask) for mask in MASKS])}
    assert not batch_rows(given, TAGS).groups


def test_what_goes_to_the_scorer():
    products = torch.arange(6, dtype=torch.float64)
    sent = rows().candidates(products, rollout_weights=True)
    assert (list(sent.problem_ids), [list(group) for group in sent.products]) == (["a"], [[0.0, 2.0]])
    assert sent.rollout_weights
    validation = rows().validation(products, 4.0, pooled=True)  # 1 group of 5 tokens
    assert [list(group) for group in validation.products] == [[0.2, 0.6000000000000001]]
    assert validation.length == pytest.approx(0.8)
    assert rows().validation(products, 4.0, pooled=False).length == 4.0


def ranking(**named):
    lists = {
        "priorities": [1.0],
        "weights": [0.5],
        "alignments": [1.0],
        "selected": [],
        "no_signal": [],
        "rejected": [],
    }
    plain = {"validation_version": 1, "validation_policy_version": 1, "strategy": "dot", "norms": None, **lists}
    return Ranking(run_id="r", policy_version=1, problem_ids=["a"], **{**plain, **named})


def test_weights_are_of_the_problem_whatever_its_group():
    found = rows()
    factors = found.factors(ranking())
    torch.testing.assert_close(factors, torch.tensor([0.5, 1, 0.5, 1, 0, 0.5]))


def test_weights_of_rollouts_are_of_the_group_that_was_measured():
    factors = rows().factors(ranking(rollout_weights=[[0.1, 0.9]]))
    torch.testing.assert_close(factors, torch.tensor([0.1, 1, 0.9, 1, 0, 0.5]))


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_that_did_not_arrive_is_named(name):
    given = columns()
    del given[name]
    with pytest.raises(
        GradAlignError, match=f"the columns {name} of the batch did not arrive; expected uid, .* Does an"
    ):
        batch_rows(given, TAGS)


@pytest.mark.parametrize("given", [None, {}, {"problem_id": ""}, {"index": 3}, "text"])
def test_a_row_without_an_id_is_named(given):
    broken = columns()
    broken["extra_info"][3] = given
    with pytest.raises(GradAlignError, match=r"row 3 of the batch has extra_info .* without a problem_id"):
        batch_rows(broken, TAGS)
