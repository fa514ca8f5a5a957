"""Rollouts with what they earned."""

import torch

from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.rollouts import reward_table
from gradalign_trainer.problems import Problem
from gradalign_trainer.worlds.tinymodel import tiny_model

PROBLEMS = [Problem(prompt, prompt, "b") for prompt in ("ab", "b", "baab")]


def test_the_table_has_what_each_completion_of_each_problem_earned(tokenizer):
    earned = {}

    def reward(problem, completion):
        earned.setdefault(problem.problem_id, []).append((completion, float(len(earned) + len(completion))))
        return earned[problem.problem_id][-1][1]

    prompts = [problem.prompt for problem in PROBLEMS]
    rollouts = generate(
        tiny_model(tokenizer, seed=2, hidden=32, mlp=64),
        tokenizer,
        prompts,
        Sampling(group_size=6, max_new_tokens=4),
        torch.Generator().manual_seed(1),
    )
    table = reward_table(PROBLEMS, reward, rollouts)
    assert [text for prompt in prompts for text, _ in earned[prompt]] == rollouts.texts
    assert table.tolist() == [[reward for _, reward in earned[prompt]] for prompt in prompts]
    assert len({tuple(row) for row in table.tolist()}) == 3
