"""Scoring passes beside the training: rollouts and backwards that leave no trace in TRL's metrics and the next update."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["aside", "gradients_aside", "scoring_batches"]


@contextmanager
def aside(trainer: Any, group_size: int) -> Iterator[None]:
    """Within the block what a GRPOTrainer generates counts for nothing: no metric, no completion table, no tokens seen.

    Args:
        trainer: a `trl.GRPOTrainer`.
        group_size: rollouts per problem.
    """
    metrics, logs, generations = trainer._metrics["train"], trainer._logs, trainer.num_generations
    seen = trainer.state.num_input_tokens_seen
    trainer._metrics["train"], trainer._logs = defaultdict(list), copy.deepcopy(logs)
    trainer.num_generations = group_size
    try:
        yield
    finally:
        trainer._metrics["train"], trainer._logs, trainer.num_generations = metrics, logs, generations
        trainer.state.num_input_tokens_seen = seen


@contextmanager
def gradients_aside(
    parameters: Sequence[nn.Parameter], heard: Callable[[nn.Parameter], None] | None = None
) -> Iterator[None]:
    """Within the block `.grad` is None at first; behind it, it is the very tensor that it was.

    Hooks that wait for gradients hear nothing of the block's: DeepSpeed would take them for the training's.

    Args:
        parameters: all that are trained.
        heard: called instead with each parameter that a backward has left its gradient at.
    """
    kept = [(parameter, parameter.grad) for parameter in parameters]
    waiting: list[Any] = [parameter._post_accumulate_grad_hooks for parameter in parameters]
    hooks = [(each, dict(each)) for each in waiting if each]
    handles = []
    try:
        for each, _ in hooks:
            each.clear()
        if heard is not None:
            handles = [parameter.register_post_accumulate_grad_hook(heard) for parameter in parameters]
        for parameter, _ in kept:
            parameter.grad = None
        yield
    finally:
        for handle in handles:
            handle.remove()
        for each, before in hooks:
            each.update(before)
        for parameter, gradient in kept:
            parameter.grad = gradient


def scoring_batches(
    rows: Sequence[Mapping[str, Any]], *, group_size: int, batch_rows: int, processes: int, process: int
) -> Iterator[list[dict[str, Any]]]:
    """This process's rows of each scoring batch, every problem `group_size` times in a row, as RepeatSampler has them.

    All batches are of one size that divides among the processes: of as many problems as a generation batch has room for, or
    a few more. The last is filled up with problems from the beginning.

    Args:
        rows: one for each problem.
        group_size: rollouts per problem.
        batch_rows: rollouts of a generation batch, over all processes.
        processes: how many there are.
        process: which this one is.
    """
    step = processes // math.gcd(group_size, processes)  # the fewest problems whose rollouts divide among them
    problems = -(-min(max(1, batch_rows // group_size), len(rows)) // step) * step
    share = problems * group_size // processes
    for start in range(0, len(rows), problems):
        wanted = [rows[number % len(rows)] for number in range(start, start + problems)]
        repeated = [dict(row) for row in wanted for _ in range(group_size)]
        yield repeated[process * share : (process + 1) * share]
