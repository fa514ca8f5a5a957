"""The loop of `own_loop.py` with the policy sharded by FSDP2, under torchrun; here two processes on the CPU.

    gradalign serve --port 8000                         # in another terminal, or `make serve`
    torchrun --nproc-per-node 2 services/trainer/examples/own_loop_fsdp2.py

Every rank samples its share of each problem's rollouts, so that a backward is of one problem on all ranks; what FSDP
averages is then that problem's gradient. `from_grads()` sketches the shards and all-reduces `dim` floats: no rank
ever holds a whole gradient. Rank 0 speaks with the scorer and tells the others.
"""

import argparse
import os
import random
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from gradalign import Client, UnavailableError, ValidationMissing
from gradalign.sketch import Sketcher

parser = argparse.ArgumentParser(description="GRPO with GradAlign and FSDP2, in one file")
parser.add_argument("--scorer", default="http://127.0.0.1:8000")
parser.add_argument("--model", help="folder of a causal LM; without it a tiny one is taught sums on the spot")
parser.add_argument("--run-id", default="own-loop-fsdp2", help="a new name for every run")
parser.add_argument("--rounds", type=int, default=10)
parser.add_argument("--pool", type=int, default=48, help="problems that are scored each round")
parser.add_argument("--select", type=int, default=8, help="of them, problems that are trained on")
parser.add_argument("--trusted", type=int, default=24, help="validation problems")
parser.add_argument("--group", type=int, default=16, help="rollouts of a problem, over all ranks")
parser.add_argument("--refresh", type=int, default=2, help="rounds between validation gradients")
args = parser.parse_args()

cuda = torch.cuda.is_available()
dist.init_process_group("nccl" if cuda else "gloo")
rank, world = dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")


def from_rank_0(make):
    """What `make()` returns on rank 0, on every rank."""
    box = [make() if rank == 0 else None]
    dist.broadcast_object_list(box)
    return box[0]


def load():
    """Model folder, problems by id, and a reward; see `own_loop.py`."""
    from gradalign_trainer.worlds.arithmetic import ArithmeticReward
    from gradalign_trainer.worlds.basemodel import base_model
    from gradalign_trainer.worlds.regimes import make_world

    made = make_world("inverted", seed=0, validation=args.trusted)
    parts = [{each.problem_id: each for each in part} for part in (made.pool, made.validation, made.heldout)]
    folder = args.model or from_rank_0(lambda: base_model(Path.home() / ".cache/gradalign"))
    return folder, *parts, ArithmeticReward()


folder, pool, trusted, heldout, reward = load()
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
mesh = init_device_mesh(device.type, (world,))
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)  # made behind `fully_shard`: it steps the shards
sketcher = Sketcher(model, dim=8192, seed=0)  # the same projection as of the model in one piece
client = Client(args.scorer, run_id=args.run_id)
torch.manual_seed(rank)  # other rollouts on each rank
rng = random.Random(0)  # the same problems on each


@torch.no_grad()
def rollouts(problem, count):
    """This rank's `count` rollouts of a problem: ids [count, T], masks [count, T] and [count, T-1], rewards [count]."""
    prompt = tokenizer([problem.prompt] * count, return_tensors="pt")["input_ids"].to(device)
    pad, start = tokenizer.pad_token_id, prompt.shape[1]
    # synced_gpus: a rank whose rollouts have ended goes on with the others, whose forwards need its shards.
    sampling = {"max_new_tokens": 6, "do_sample": True, "top_k": 0, "pad_token_id": pad, "synced_gpus": True}
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **sampling)
    end = (ids[:, start:] == tokenizer.eos_token_id).long()
    real = (end.cumsum(1) - end == 0).long()
    texts = tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
    rewards = torch.tensor([reward(problem, text) for text in texts], device=device)
    return ids, torch.cat([torch.ones_like(prompt), real], 1), torch.cat([0 * prompt[:, 1:], real], 1), rewards


def summed(*values):
    """Sums over all ranks."""
    total = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value in values])
    dist.all_reduce(total)
    return total.tolist()


def backward(problem, group, share=1.0):
    """Add a share of the gradient of one problem's GRPO loss to `.grad`; the group's tokens and mean reward."""
    ids, attention, counted, rewards = rollouts(problem, group // world)
    reward_sum, tokens = summed(rewards.sum(), counted.sum())
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
    logp = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    terms = (logp * counted).sum(1) * (rewards - reward_sum / group)
    (-share * world * terms.sum() / tokens).backward()  # times world, since FSDP takes the mean over ranks
    return int(tokens), reward_sum / group


def measured(problems):
    """What the scorer wants of problems, one backward each: sketches of all ranks' shards together."""
    rows = []
    for problem in problems:
        optimizer.zero_grad()
        tokens, rate = backward(problem, args.group)
        rows.append((sketcher.from_grads(), tokens, rate))  # on all ranks
    sketches, tokens, rates = zip(*rows, strict=True)
    return {"sketches": torch.stack(sketches), "tokens": tokens, "rollouts": [args.group] * len(rows)}, rates


def choose(candidates, step, refresh):
    """Ids of the problems to train on, the same on every rank; None when the scorer is away."""
    validation = measured(list(trusted.values()))[0] if refresh else None  # collectives: on every rank, in one order
    columns, rates = measured([pool[name] for name in candidates])
    spec = {"policy_version": step, "projection": sketcher.projection}

    def ask():
        try:
            if validation is not None and validation["sketches"].any():  # else nothing was learned of it
                client.refresh_validation(list(trusted), **validation, **spec)
            return client.score(candidates, **columns, pass_rates=rates, select=args.select, **spec).selected
        except (UnavailableError, ValidationMissing) as error:
            print(f"random choice, validation is refreshed next round: {error}")
            return None

    return from_rank_0(ask)


def accuracy():
    """Share of the held-out problems that are answered rightly; each rank takes its part, all take as many."""
    own = list(heldout.values())[rank::world][: min(64, len(heldout) // world)]
    right = [rollouts(problem, 4)[3].mean() for problem in own]
    return summed(torch.stack(right).sum())[0] / (len(own) * world)


refresh = True
for step in range(args.rounds):
    candidates = rng.sample(list(pool), args.pool)
    fallback = rng.sample(candidates, args.select)  # drawn on every rank, so that their random numbers stay alike
    selected = choose(candidates, step, refresh or step % args.refresh == 0)
    refresh = selected is None
    optimizer.zero_grad()
    rates = [backward(pool[name], args.group, share=1 / args.select)[1] for name in selected or fallback]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    judged = accuracy()
    if rank == 0:
        print(f"round {step + 1}: reward {sum(rates) / len(rates):.3f}, held-out accuracy {judged:.3f}", flush=True)
dist.destroy_process_group()
