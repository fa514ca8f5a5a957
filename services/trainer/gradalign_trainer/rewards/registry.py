"""Rewards of completions, by name: `make_reward("math_verify")`.

A reward is called with a problem and the text of one completion and returns a number in [0, 1]. One of your own is
named `package.module:function`.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from gradalign_trainer.problems import Problem, Reward
from gradalign_trainer.rewards.graded import GradedReward
from gradalign_trainer.settings import SettingsError, nearest
from gradalign_trainer.worlds.arithmetic import ArithmeticReward

__all__ = [
    "Reward",
    "exact_match",
    "exact_match_ignoring_case",
    "make_reward",
    "reasoning_gym_reward",
    "reward_names",
    "unknown_reward",
]

logger = logging.getLogger(__name__)


def exact_match(problem: Problem, completion: str) -> float:
    """1 where the completion is the answer, white space at both ends aside; else 0."""
    return float(completion.strip() == problem.answer.strip())


def exact_match_ignoring_case(problem: Problem, completion: str) -> float:
    """As `exact_match`, upper and lower case alike."""
    return float(completion.strip().casefold() == problem.answer.strip().casefold())


def reasoning_gym_reward(problem: Problem, completion: str) -> float:
    """The score of the task's own verifier, in [0, 1], partial credit included.

    The answer is what stands in the last `<answer>...</answer>`, or else the whole completion, stripped. A verifier
    that raises on a completion scores it 0.

    Raises:
        SettingsError: the problem does not come from a `reasoning_gym` source.
    """
    from reasoning_gym.utils import extract_answer

    from gradalign_trainer.datasets.sources.reasoning import task_dataset

    extra = problem.extra
    if not {"task", "config", "entry"} <= extra.keys():
        raise SettingsError(
            [
                f"reward 'reasoning_gym' was asked about problem {problem.problem_id!r} of source {problem.source!r}, "
                "which no reasoning_gym task made; expected problems of a source of kind 'reasoning_gym'. "
                "Use another reward (exact, math_verify) for this data."
            ]
        )
    answer = extract_answer(completion)
    verifier = task_dataset(extra["task"], extra["config"])
    try:
        score = float(verifier.score_answer(completion.strip() if answer is None else answer, extra["entry"]))
    except Exception as error:  # the verifiers parse what a model wrote, and raise whatever their parsers do
        logger.debug("The verifier of %s raised on problem %s: %r", extra["task"], problem.problem_id, error)
        return 0.0
    return min(max(score, 0.0), 1.0)


def _math_verify() -> Reward:
    from gradalign_trainer.rewards.math_reward import MathVerify

    return MathVerify()


_FACTORIES: Mapping[str, Callable[[], Reward]] = {
    "arithmetic": ArithmeticReward,
    "exact": lambda: exact_match,
    "exact_ignoring_case": lambda: exact_match_ignoring_case,
    "math_verify": _math_verify,
    "reasoning_gym": lambda: reasoning_gym_reward,
    "graded": lambda: GradedReward(make_reward),
}


def reward_names() -> tuple[str, ...]:
    """The names that `make_reward` knows."""
    return tuple(_FACTORIES)


def unknown_reward(name: str) -> str | None:
    """What is wrong with the name of a reward, as "expected ..."; None where nothing is."""
    if name in _FACTORIES or ":" in name:
        return None
    hint = nearest(name, _FACTORIES)
    return f"expected one of {', '.join(_FACTORIES)}, or package.module:function for one of your own{hint}"


def make_reward(name: str) -> Reward:
    """The reward of a name.

    Args:
        name: one of `reward_names()`, or `package.module:function`.

    Raises:
        SettingsError: unknown name, or the module or function is not there.
        GradAlignError: a package that the reward needs is not installed.
    """
    fault = unknown_reward(name)
    if fault:
        raise SettingsError([f"reward {name!r}: {fault}."])
    return _FACTORIES[name]() if name in _FACTORIES else _imported(name)


def _imported(name: str) -> Reward:
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:  # an installed command has its own folder there; at the end it can hide nothing
        sys.path.append(os.getcwd())
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise SettingsError(
            [
                f"reward {name!r} cannot be imported: {error}. Expected package.module:function, "
                "importable from the folder the command runs in or installed."
            ]
        ) from error
    if not callable(found):
        raise SettingsError(
            [f"reward {name!r} is {type(found).__name__}; expected a function (problem, text) -> float."]
        )
    reward: Reward = found
    return reward
