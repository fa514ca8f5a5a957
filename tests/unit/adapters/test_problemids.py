"""Ids of problems without one: the same as the loader's, whatever the adapter."""

import json

import pytest

from gradalign_trainer.adapters.problemids import row_id, stable_id
from gradalign_trainer.datasets import load_problems

CHAT = [{"role": "user", "content": "2+3="}]


def test_equals_the_id_that_the_loader_makes(tmp_path):
    agent = [{"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}, *CHAT]
    records = [
        {"prompt": "2+3=", "answer": "5", "source": "sums"},
        {"prompt": CHAT, "answer": 5.0},
        {"prompt": agent, "answer": "5"},
    ]
    (tmp_path / "problems.jsonl").write_text("\n".join(map(json.dumps, records)))
    loaded = load_problems(str(tmp_path / "problems.jsonl")).problems
    assert [stable_id("2+3=", "5", "sums"), stable_id(CHAT, 5.0), stable_id(agent, "5")] == [
        problem.problem_id for problem in loaded
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [(("2+3=", "5"), ("2+3=", "6")), (("2+3=", "5", "a"), ("2+3=", "5", "b")), (("2+3=", "5"), (CHAT, "5"))],
)
def test_differs_where_any_part_does(one, other):
    assert stable_id(*one) != stable_id(*other)


def test_an_answer_of_another_type_counts_as_its_json():
    assert stable_id("p", 5) == stable_id("p", "5") == stable_id("p", 5.0)
    assert stable_id("p", 0.00001) == stable_id("p", "0.00001")
    assert stable_id("p", {"b": 1, "a": 2}) == stable_id("p", '{"a": 2, "b": 1}')
    assert stable_id("p", None) == stable_id("p", "") == stable_id("p")


def test_a_prompt_that_is_no_chat_is_refused():
    with pytest.raises(TypeError, match=r"expected .*role.*content"):
        stable_id([{"text": "2+3="}])


def test_a_row_has_the_id_of_its_column_else_of_all_its_columns():
    row = {"messages": CHAT, "answer": "5"}
    assert row_id({**row, "problem_id": 7}) == "7"
    assert row_id({**row, "problem_id": None}) != row_id(row)
    assert row_id(dict(reversed(row.items()))) == row_id(row)
    assert row_id({**row, "answer": "6"}) != row_id(row)


def test_a_row_without_json_form_says_what_to_give():
    with pytest.raises(TypeError, match=r"'image', 'messages'.*give the dataset a column problem_id"):
        row_id({"messages": CHAT, "image": object()})
