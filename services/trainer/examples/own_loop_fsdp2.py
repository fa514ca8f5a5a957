"""The loop of `own_loop.py` with the policy sharded by FSDP2, under torchrun; here two processes on the CPU.

    gradalign serve --port 8000                         # in another terminal, or `make serve`
    torchrun --nproc-per-node 2 services/trainer/examples/own_loop_fsdp2.py

Every rank samples its share of each problem's rollouts. One backward under `capture` sketches all problems: each rank
sketches its own rows while FSDP holds a layer whole, and `dim` floats a problem are added over ranks. No rank ever holds
a whole gradient. Rank 0 speaks with the scorer and tells the others.
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
def rollouts(problems, group):
    """This rank's rollouts: ids and masks [R, T], which tokens count [R, T-1], shares of the loss [R]; and of all ranks'
    rollouts the tokens and the mean reward of each problem, [P]."""
    owners = [problem for problem in problems for _ in range(group // world)]
    prompts = tokenizer([problem.prompt for problem in owners], return_tensors="pt", padding=True).to(device)
    asked, mask = prompts["input_ids"], prompts["attention_mask"]
    # synced_gpus: a rank whose rollouts have ended goes on with the others, whose forwards need its shards.
    sampling = {"max_new_tokens": 6, "do_sample": True, "top_k": 0, "pad_token_id": tokenizer.pad_token_id}
    ids = model.generate(asked, attention_mask=mask, synced_gpus=True, **sampling)
    end = (ids[:, asked.shape[1] :] == tokenizer.eos_token_id).long()
    real = end.cumsum(1) - end == 0
    texts = tokenizer.batch_decode(ids[:, asked.shape[1] :], skip_special_tokens=True)
    rewards = torch.tensor(list(map(reward, owners, texts)), device=device).view(len(problems), -1)
    totals = torch.stack([rewards.sum(1), real.view(len(problems), -1).sum(1)])
    dist.all_reduce(totals)
    rates, tokens = totals[0] / group, totals[1]
    shares = (rewards - rates[:, None]) / tokens[:, None]
    batch = ids, torch.cat([mask, real.long()], 1), torch.cat([0 * asked[:, 1:], real], 1), shares.flatten()
    return batch, tokens, rates


def loss(batch):
    """This rank's part of the GRPO loss, summed over problems."""
    ids, attention, counted, shares = batch
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False).logits[:, :-1]
    logp = torch.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    return -(logp * counted * shares[:, None]).sum()


def measured(problems):
    """What the scorer wants of problems, all of them in one backward: the same on every rank."""
    batch, tokens, rates = rollouts(problems, args.group)
    index = torch.arange(len(problems)).repeat_interleave(args.group // world)  # problem of each row of this rank
    with sketcher.capture(index.to(device), problems=len(problems), keep_grad=False) as captured:
        loss(batch).backward()
    groups = [args.group] * len(problems)
    return {"sketches": captured.sketches, "tokens": tokens.int().tolist(), "rollouts": groups}, rates.tolist()


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


refresh = True
for step in range(args.rounds):
    candidates = rng.sample(list(pool), args.pool)
    fallback = rng.sample(candidates, args.select)  # drawn on every rank, so that their random numbers stay alike
    selected = choose(candidates, step, refresh or step % args.refresh == 0)
    refresh = selected is None
    chosen = [pool[name] for name in selected or fallback]
    batch, _, rates = rollouts(chosen, args.group)
    (loss(batch) * world / len(chosen)).backward()  # times world, since FSDP takes the mean over ranks
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    accuracy = rollouts(list(heldout.values()), world)[2].mean()
    if rank == 0:
        print(f"round {step + 1}: reward {rates.mean():.3f}, held-out accuracy {accuracy:.3f}", flush=True)
dist.destroy_process_group()
