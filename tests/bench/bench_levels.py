"""How often a model is right before any training, by task and level: where the levels of the world smollm2 come from.

    python tests/bench/bench_levels.py MODEL [--problems N] [--rollouts N] [--only TEXT ...]

MODEL is the folder that `gradalign fetch-model smollm2 MODEL` makes. Prompts, limits and verifiers are the world's. pass@8
is unbiased: the chance that 8 of a problem's rollouts, drawn without putting back, hold a right one.
Needs reasoning_gym.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from math import comb
from pathlib import Path
from statistics import fmean, stdev

import torch

from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.policy.policy import Policy
from gradalign_trainer.problems import Problem
from gradalign_trainer.rewards.registry import make_reward
from gradalign_trainer.worlds.tasks.smollm2 import OFF_TARGET, SmolLM2World, off_target_problems, word_problems
from gradalign_trainer.worlds.tasks.wordproblems import LEVELS

OTHERS = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "number_sequence": {},
    "simple_equations": {},
    "spell_backward": {"min_word_len": 3, "max_word_len": 3},
}
"""Tasks that were looked at too."""

WANTED, PART = 8, 20


def tasks(count: int) -> Iterator[tuple[str, list[Problem]]]:
    """Names of tasks and levels, and problems of each."""
    for level in LEVELS:
        yield f"words/{level}", word_problems(level, count, random.Random(f"levels/{level}"))
    for task, config in {**OFF_TARGET, **OTHERS}.items():
        yield f"reasoning_gym/{task}", off_target_problems(count, 7, {task: config})


def pass_at(wanted: int, right: int, drawn: int) -> float:
    """The chance that `wanted` of `drawn` rollouts, `right` of them right, hold a right one."""
    return 1 - comb(drawn - right, wanted) / comb(drawn, wanted)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--only", nargs="+", default=[""])
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainConfig(run_id="levels", output=Path(), device="cpu", **SmolLM2World.settings)
    policy, reward, drawn = Policy(config, args.model), make_reward("graded"), args.rollouts
    print("| task | problems | pass@1 | pass@8 |\n| --- | --- | --- | --- |")
    for name, problems in tasks(args.problems):
        if not any(text in name for text in args.only):
            continue
        right: list[int] = []
        for start in range(0, len(problems), PART):
            scored = policy.rollouts(problems[start : start + PART], reward, drawn, policy.generator(name, start))
            right += (scored.rewards == 1).sum(1).tolist()
        rates = [count / drawn for count in right]
        solved = [pass_at(WANTED, count, drawn) for count in right]
        error = stdev(solved) / len(solved) ** 0.5
        print(f"| {name} | {len(right)} | {fmean(rates):.3f} | {fmean(solved):.2f} ± {error:.2f} |", flush=True)


if __name__ == "__main__":
    main()
