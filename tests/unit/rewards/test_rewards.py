"""Rewards by name, and one's own."""

import importlib
import json
import sys

import pytest

from gradalign_trainer.datasets import load_problems
from gradalign_trainer.problems import Problem
from gradalign_trainer.rewards.registry import (
    exact_match,
    exact_match_ignoring_case,
    make_reward,
    reward_names,
    unknown_reward,
)
from gradalign_trainer.settings import SettingsError

PROBLEM = Problem("p", "capital of France?", " Paris ")


@pytest.mark.parametrize(
    ("completion", "exact", "ignoring_case"),
    [
        ("Paris", 1.0, 1.0),
        ("\n Paris\t", 1.0, 1.0),
        ("PARIS", 0.0, 1.0),
        ("Paris.", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_exact_rewards(completion, exact, ignoring_case):
    assert exact_match(PROBLEM, completion) == exact
    assert exact_match_ignoring_case(PROBLEM, completion) == ignoring_case
    assert make_reward("exact") is exact_match
    assert make_reward("exact_ignoring_case") is exact_match_ignoring_case


@pytest.mark.parametrize(("answer", "said"), [(5.0, "5"), (0.0, "0"), (-3.0, "-3"), (2.5, "2.5"), (0.00001, "0.00001")])
def test_a_number_that_pandas_made_a_float_is_still_the_number(tmp_path, answer, said):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "p", "answer": answer}))
    assert exact_match(load_problems(str(tmp_path / "a.jsonl")).problems[0], said) == 1.0


def test_letters_that_grow_when_folded_are_alike():
    assert exact_match_ignoring_case(Problem("p", "q", "STRASSE"), "straße") == 1.0


def test_every_name_makes_a_reward():
    assert set(reward_names()) == {
        "arithmetic",
        "exact",
        "exact_ignoring_case",
        "math_verify",
        "reasoning_gym",
        "graded",
    }
    assert all(callable(make_reward(name)) for name in reward_names())
    assert all(unknown_reward(name) is None for name in reward_names())


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(
        SettingsError, match=r"reward 'math-verify': expected one of .* \(did you mean 'math_verify'\?\)\."
    ):
        make_reward("math-verify")


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module in the folder that the command runs in, off the path as for an installed command."""
    (tmp_path / "my_rewards.py").write_text(
        "def length(problem, completion):\n    return min(len(completion) / 10, 1.0)\n\nLIMIT = 3\n"
    )
    (tmp_path / "my_broken_rewards.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    importlib.invalidate_caches()
    yield
    for name in ("my_rewards", "my_broken_rewards"):
        sys.modules.pop(name, None)


def test_ones_own_function_is_found_in_the_working_folder(own_module):
    assert make_reward("my_rewards:length")(PROBLEM, "12345") == 0.5


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("my_rewards:nope", "cannot be imported: module 'my_rewards' has no attribute 'nope'"),
        ("my_rewards:LIMIT", "is int; expected a function"),
        ("my_rewards:", "cannot be imported"),
        ("my_reward:length", "cannot be imported: No module named 'my_reward'"),
        ("my_broken_rewards:length", "cannot be imported: No module named 'no_such_package'"),
        (":length", "cannot be imported"),
        ("..my_rewards:length", "cannot be imported"),
    ],
)
def test_what_cannot_be_imported_is_told_why(own_module, name, fault):
    with pytest.raises(SettingsError, match=f"reward {name!r} {fault}"):
        make_reward(name)
