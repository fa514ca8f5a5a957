"""The README's examples, run as printed."""

import re
from pathlib import Path
from types import SimpleNamespace

import torch
from pageblocks import blocks_of

from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.loss import problem_losses
from gradalign_trainer.worlds.arithmetic import CHARACTERS, arithmetic_problem
from gradalign_trainer.worlds.tinymodel import character_tokenizer, tiny_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def block(language):
    return blocks_of(README, language)[0].code


def test_the_loop_of_ones_own_runs(scorer, run_id):
    tokenizer = character_tokenizer(CHARACTERS)
    model = tiny_model(tokenizer, seed=0)
    generator = torch.Generator().manual_seed(0)
    trained = []

    def grpo_loss(model, problem):
        rollouts = generate(model, tokenizer, [problem.prompt], Sampling(4, 4), generator)
        return problem_losses(model, rollouts, torch.tensor([[1.0, -1.0, 0.5, -0.5]])).sum()

    problems = [arithmetic_problem(a, "+", a) for a in range(12)]
    names = SimpleNamespace(validation=problems[:4], candidates=problems[4:])
    code = block("python").replace(ADDRESS, scorer.url).replace("my-run", run_id).replace("select=256", "select=3")
    scope = {
            "torch": torch, "model": model, "grpo_loss": grpo_loss, "step": 7, "train_on": trained.extend,
            "validation": names.validation, "validation_ids": [p.problem_id for p in names.validation],
            "candidates": names.candidates, "candidate_ids": [p.problem_id for p in names.candidates],
        }  # fmt: skip
    exec(code, scope)
    scope["client"].close()
    assert len(trained) == 3
    assert set(trained) <= {p.problem_id for p in names.candidates}


def test_every_file_the_readme_links_is_there():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link
    for path in re.findall(r"services/trainer/configs/\S+\.toml", README):
        assert (ROOT / path).exists(), path
