"""Ids that verl's rows carry, or are given: 0 and other falsy values are ids and sources, and none is none."""

from types import SimpleNamespace

import pytest

from gradalign.errors import GradAlignError
from gradalign_trainer.adapters.problemids import stable_id
from gradalign_trainer.adapters.verl.problems import batch_problem_ids, mark_problems

PROMPT = [{"role": "user", "content": "2+3="}]


def row(source="sums", **info):
    return {"data_source": source, "prompt": PROMPT, "reward_model": {"ground_truth": "5"}, "extra_info": info}


def marked(*rows):
    dataset = SimpleNamespace(dataframe=list(rows))
    return list(mark_problems(dataset).pool)


def batch(*infos):
    return SimpleNamespace(non_tensor_batch={"extra_info": list(infos)})


@pytest.mark.parametrize(("given", "expected"), [(0, "0"), (0.0, "0.0"), (False, "False"), (7, "7"), ("a", "a")])
def test_an_id_of_any_value_is_kept(given, expected):
    assert marked(row(problem_id=given)) == [expected]
    assert batch_problem_ids(batch({"problem_id": given})) == ([expected], [False])


@pytest.mark.parametrize("given", [None, ""])
def test_none_and_empty_text_are_no_ids(given):
    assert marked(row(problem_id=given)) == [stable_id(PROMPT, "5", "sums")]
    with pytest.raises(GradAlignError, match=r"carry no extra_info\.problem_id"):
        batch_problem_ids(batch({"problem_id": "a"}, {"problem_id": given}))


def test_a_source_of_0_is_a_source():
    assert marked(row(0), row(None), row("")) == [stable_id(PROMPT, "5", "0"), stable_id(PROMPT, "5")]
    assert marked(row(0)) == marked(row("0"))


@pytest.mark.parametrize("infos", [(None,), ({},), ({"problem_id": 0}, None)])
def test_rows_without_any_information_carry_no_id(infos):
    with pytest.raises(GradAlignError, match="does a custom dataset drop extra_info"):
        batch_problem_ids(batch(*infos))
