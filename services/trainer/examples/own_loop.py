"""A whole GRPO loop with GradAlign: plain PyTorch, transformers, and alignment from forward passes.

    gradalign serve --port 8000                         # in another terminal, or `make serve`
    python services/trainer/examples/own_loop.py

Copy it and put your own model, problems and reward in place of `load()`. Everything else stays.
"""

import argparse
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed

from gradalign import Client, UnavailableError, ValidationMismatch, ValidationMissing
from gradalign.forward import Direction

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
pad = tokenizer.pad_token_id
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()  # eval: no dropout
optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
direction = Direction(model)  # every trainable parameter; with LoRA, the adapters
client = Client(args.scorer, run_id=args.run_id)
set_seed(0)


@torch.no_grad()
def rollouts(problems, group):
    """Token ids [P*G, T], their mask, that of completion tokens [P*G, T-1], A_i / Z of rollouts [P*G], rewards [P, G]."""
    owners = [problem for problem in problems for _ in range(group)]
    prompts = tokenizer([problem.prompt for problem in owners], padding=True, return_tensors="pt").to(device)
    asked, mask = prompts["input_ids"], prompts["attention_mask"]
    ids = model.generate(asked, attention_mask=mask, max_new_tokens=6, do_sample=True, top_k=0, pad_token_id=pad)
    end = (ids[:, asked.shape[1] :] == tokenizer.eos_token_id).long()
    real = end.cumsum(1) - end == 0  # up to the end token, and that too
    texts = tokenizer.batch_decode(ids[:, asked.shape[1] :], skip_special_tokens=True)
    rewards = torch.tensor(list(map(reward, owners, texts)), device=device).view(-1, group)
    shares = (rewards - rewards.mean(1, keepdim=True)) / real.view(len(problems), -1).sum(1, keepdim=True)
    return ids, torch.cat([mask, real.long()], 1), torch.cat([0 * asked[:, 1:], real], 1), shares.flatten(), rewards


def logprobs(batch):
    """Log-probs of all tokens but the first, [P*G, T-1]: the function that a trainer has."""
    ids, attention = batch[:2]
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False).logits[:, :-1]
    return torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None])[..., 0]


def loss(batch):
    """The GRPO loss: the mean over problems of one token mean a group."""
    return -(logprobs(batch) * batch[2] * batch[3][:, None]).sum() / len(batch[4])


def products(batch):
    """Of each rollout's gradient with the validation gradient [P, G], from forward passes; `.grad` is not touched."""
    return direction.products(logprobs, batch, batch[3], batch[2]).view_as(batch[4])


def refresh(step):
    """A new validation gradient, from an ordinary backward; None where all rollouts of each problem earned the same."""
    batch = rollouts(list(trusted.values()), args.group)
    if not batch[3].any():
        return None
    loss(batch).backward()
    columns = {"lengths": direction.take(), "products": products(batch) / len(trusted), "policy_version": step}
    return client.refresh_validation(list(trusted), **columns).validation_version


version = None
for step in range(args.rounds):
    candidates = random.sample(list(pool), args.pool)
    selected = random.sample(candidates, args.select)
    try:
        if step % args.refresh == 0 or not version:
            version = refresh(step) or version
        if version:
            batch = rollouts([pool[name] for name in candidates], args.group)
            columns = {"products": products(batch), "products_version": version, "policy_version": step}
            selected = client.score(candidates, select=args.select, strategy="shrunken", **columns).selected
    except (UnavailableError, ValidationMissing, ValidationMismatch) as error:
        print(f"random choice, validation is refreshed next round: {error}")
        version = None
    batch = rollouts([pool[name] for name in selected], args.group)
    loss(batch).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    accuracy = rollouts(list(heldout.values()), 1)[4].mean()
    print(f"round {step + 1}: reward {batch[4].mean():.3f}, held-out accuracy {accuracy:.3f}", flush=True)
