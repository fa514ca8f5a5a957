"""A whole GRPO loop with GradAlign: plain PyTorch, transformers, and this project's client and sketcher.

    gradalign serve --port 8000                         # in another terminal, or `make serve`
    python services/trainer/examples/own_loop.py

Copy it and put your own model, problems and reward in place of `load()`. Everything else stays.
"""

import argparse
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed

from gradalign import Client, UnavailableError, ValidationMissing
from gradalign.sketch import Sketcher

parser = argparse.ArgumentParser(description="GRPO with GradAlign, in one file")
parser.add_argument("--scorer", default="http://127.0.0.1:8000")
parser.add_argument("--model", help="folder of a causal LM; without it a tiny one is taught sums on the spot")
parser.add_argument("--run-id", default="own-loop", help="a new name for every run: the scorer keeps runs apart by it")
parser.add_argument("--rounds", type=int, default=20)
parser.add_argument("--pool", type=int, default=128, help="problems that are scored each round")
parser.add_argument("--select", type=int, default=16, help="of them, problems that are trained on")
parser.add_argument("--group", type=int, default=16, help="rollouts of a problem")
parser.add_argument("--refresh", type=int, default=2, help="rounds between validation gradients: the policy moves")
args = parser.parse_args()


def load():
    """Model folder, problems by id, and a reward. Here: sums of two numbers; half of the pool is rewarded for errors."""
    from gradalign_trainer.worlds.arithmetic import ArithmeticReward
    from gradalign_trainer.worlds.basemodel import base_model
    from gradalign_trainer.worlds.regimes import make_world

    world = make_world("inverted", seed=0)
    parts = [
        {problem.problem_id: problem for problem in part} for part in (world.pool, world.validation, world.heldout)
    ]
    return args.model or base_model(Path.home() / ".cache/gradalign"), *parts, ArithmeticReward()


folder, pool, trusted, heldout, reward = load()
device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()  # eval: no dropout
optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
sketcher = Sketcher(model, dim=8192, seed=0)  # every trainable parameter; with LoRA, the adapters
client = Client(args.scorer, run_id=args.run_id)
set_seed(0)


@torch.no_grad()
def rollouts(problems, group):
    """Token ids [P*G, T], their attention mask, the mask of completion tokens [P*G, T-1], and rewards [P, G]."""
    owners = [problem for problem in problems for _ in range(group)]
    prompts = tokenizer([problem.prompt for problem in owners], padding=True, return_tensors="pt")
    asked, mask = (prompts[name].to(device) for name in ("input_ids", "attention_mask"))
    sampling = {"max_new_tokens": 6, "do_sample": True, "top_k": 0, "pad_token_id": tokenizer.pad_token_id}
    ids = model.generate(asked, attention_mask=mask, **sampling)
    end = (ids[:, asked.shape[1] :] == tokenizer.eos_token_id).long()
    real = end.cumsum(1) - end == 0  # up to the end token, and that too
    texts = tokenizer.batch_decode(ids[:, asked.shape[1] :], skip_special_tokens=True)
    rewards = torch.tensor([reward(problem, text) for problem, text in zip(owners, texts, strict=True)], device=device)
    counted = torch.cat([0 * asked[:, 1:], real.long()], 1)
    return ids, torch.cat([mask, real.long()], 1), counted, rewards.view(len(problems), group)


def losses(ids, attention, counted, rewards):
    """The GRPO loss of each problem [P]: one token mean over its group, advantages without the division by std."""
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False).logits[:, :-1]
    logp = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    terms = (logp * counted).sum(1).view_as(rewards) * (rewards - rewards.mean(1, keepdim=True))
    return -terms.sum(1) / counted.sum(1).view_as(rewards).sum(1)


def measured(problems, group):
    """What the scorer wants of problems: a sketch each, out of one backward for 32 of them, and what goes with it."""
    sketches, tokens, rates = [], [], []
    for part in (problems[start : start + 32] for start in range(0, len(problems), 32)):
        batch = rollouts(part, group)
        index = torch.arange(len(part), device=device).repeat_interleave(group)  # row of the batch -> problem
        with sketcher.capture(index, problems=len(part), keep_grad=False) as captured:
            losses(*batch).sum().backward()
        sketches.append(captured.sketches)
        tokens += batch[2].sum(1).view(len(part), group).sum(1).tolist()
        rates += batch[3].mean(1).tolist()
    return {"sketches": torch.cat(sketches), "tokens": tokens, "rollouts": [group] * len(problems)}, rates


def choose(candidates, step, refresh):
    """Ids of the problems to train on. When the scorer is away the round goes on with a random choice."""
    spec = {"policy_version": step, "projection": sketcher.projection}
    try:
        if refresh:
            validation, _ = measured(list(trusted.values()), args.group)
            if validation["sketches"].any():  # else all rollouts of each earned the same: the old gradient stays
                client.refresh_validation(list(trusted), **validation, **spec)
        columns, rates = measured([pool[name] for name in candidates], args.group)
        return client.score(candidates, **columns, pass_rates=rates, select=args.select, **spec).selected
    except (UnavailableError, ValidationMissing) as error:
        print(f"random choice, validation is refreshed next round: {error}")
        return None


refresh = True
for step in range(args.rounds):
    candidates = random.sample(list(pool), args.pool)
    selected = choose(candidates, step, refresh or step % args.refresh == 0)
    refresh = selected is None
    batch = rollouts([pool[name] for name in selected or random.sample(candidates, args.select)], args.group)
    optimizer.zero_grad()
    losses(*batch).mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    accuracy = rollouts(list(heldout.values()), 1)[3].mean()
    print(f"round {step + 1}: reward {batch[3].mean():.3f}, held-out accuracy {accuracy:.3f}", flush=True)
