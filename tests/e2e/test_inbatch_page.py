"""The examples of docs/inbatch.md, run as printed."""

import random
from pathlib import Path

import numpy as np
import torch
from pageblocks import blocks_of

from gradalign import Client
from gradalign_trainer.config.files import load_config
from gradalign_trainer.grpo.generation import Sampling, generate
from gradalign_trainer.grpo.loss import problem_losses
from gradalign_trainer.worlds.arithmetic import CHARACTERS, arithmetic_problem
from gradalign_trainer.worlds.tinymodel import character_tokenizer, tiny_model

PAGE = (Path(__file__).parents[2] / "docs/inbatch.md").read_text()


def test_the_loop_of_ones_own_runs(scorer, run_id):
    tokenizer = character_tokenizer(CHARACTERS)
    model = tiny_model(tokenizer, seed=0)
    problems = {
        problem.problem_id: problem for problem in (arithmetic_problem(a, "+", b) for a in range(9) for b in range(20))
    }
    pool, trusted = list(problems)[:160], list(problems)[160:164]
    groups = {}

    def grpo_loss(model, problem_id, step):
        if (problem_id, step) not in groups:
            generator = torch.Generator().manual_seed(step)
            groups[problem_id, step] = generate(
                model, tokenizer, [problems[problem_id].prompt], Sampling(4, 4), generator
            )
        return problem_losses(model, groups[problem_id, step], torch.tensor([[1.0, -1.0, 0.5, -0.5]])).sum()

    def sketches_of(sketcher, problem_ids, step):
        rows = []
        for problem_id in problem_ids:
            model.zero_grad()
            grpo_loss(model, problem_id, step).backward()
            rows.append(sketcher.from_grads())
        return torch.stack(rows)

    before = model.lm_head.weight.detach().clone()
    code = blocks_of(PAGE, "python")[0].code
    code = (
        code.replace("http://127.0.0.1:8000", scorer.url)
        .replace("my-run", run_id)
        .replace("8192", "512")
        .replace("trusted, 16", "trusted, 4")
    )
    code = code.replace("pool, 512", "pool, 128").replace("        64, policy", "        16, policy")
    scope = {
            "model": model, "random": random.Random(0), "steps": 3, "pool": pool, "trusted": trusted,
            "features": dict(zip(pool, np.random.default_rng(0).standard_normal((160, 4)), strict=True)),
            "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3), "sketches_of": sketches_of, "grpo_loss": grpo_loss,
        }  # fmt: skip
    exec(code, scope)
    scope["client"].close()
    assert not torch.equal(model.lm_head.weight, before)
    with Client(scorer.url, run_id=run_id) as client:
        assert [record.kind for record in client.rounds()] == ["refresh", "select", "score"] * 3
        last = client.rounds()[-2]
    assert (last.problems, last.selected, last.summary["explored"]) == (128, 16, 3)


def test_the_settings_are_settings(tmp_path):
    path = tmp_path / "run.toml"
    text = 'run_id = "r"\noutput = "runs/r"\n' + blocks_of(PAGE, "toml")[0].code
    path.write_text(text + '\n[scorer]\nurl = "http://127.0.0.1:8000"\n')
    config = load_config(path)
    assert (config.mode, config.batch_problems, config.validation_decay) == ("weight", 64, 0.7)
