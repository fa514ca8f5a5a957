"""One rank of verl 0.9's FSDP2 engine with the meter in it: `python verl09ranks.py RANK WORLD FOLDER CASE`.

Writes what it saw to `FOLDER/CASE.WORLD.RANK`. The rows of all cases are the same, spread over the ranks.
"""

import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
import verl09kit as kit
from torch.distributed.tensor import DTensor

from gradalign import GradAlignError
from gradalign_trainer.adapters.verl.v1.meter import CANDIDATES, VALIDATED, EngineMeter

TOKENS = [
    [5, 6, 7, 8, 9], [5, 6, 7, 8], [10, 11, 12, 13, 14, 15], [10, 11, 12, 1],  # validated on: two problems
    [5, 6, 7, 8], [5, 6, 9, 8, 7], [10, 11, 13], [10, 11, 12, 14, 15], [6, 7, 8, 9], [6, 7, 5],
    [3, 3], [3, 3],  # fill up
]  # fmt: skip
LENGTHS = [3, 2, 3, 2, 2, 3, 1, 3, 2, 1, 1, 1]
ADVANTAGES = [1.0, -1.0, 0.5, -0.5, 1.0, -1.0, -0.7, 0.7, 0.0, 0.0, 9.0, 9.0]
GROUP_TOKENS = [5, 5, 5, 5, 5, 5, 4, 4, 3, 3, 1, 1]
LAST = 10
"""Rows before it are of problems; the others fill up."""


def shares(first, last):
    return torch.tensor([1 / tokens if first <= row < last else 0.0 for row, tokens in enumerate(GROUP_TOKENS)])[
        :, None
    ]


def rows_of(rank, world, order=None):
    """This rank's rows: a part of each kind, so that with two ranks row 8 and 9 (without a signal) are on one of them."""
    size = len(TOKENS) // world
    order = order or list(range(len(TOKENS)))
    return order[rank * size : (rank + 1) * size]


def batch(mine, *, validated=True, **columns):
    def own(values):
        return [values[row] for row in mine]

    shared = {VALIDATED: shares(0, 4 if validated else 0)[mine], CANDIDATES: shares(4, LAST)[mine]}
    return kit.batch(own(TOKENS), own(LENGTHS), own(ADVANTAGES), **shared, **columns)


def whole(parameters):
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in parameters]


def update(worker, data):
    """One update as verl makes it; the weights behind it."""
    from verl.workers.utils.padding import no_padding_2_padding

    def loss(model_output, data, dp_group=None):
        logprobs = no_padding_2_padding(model_output["log_probs"], data)
        return -(logprobs * data.select("advantages").to_padded_tensor()["advantages"]).sum() * data["dp_size"], {}

    meter = EngineMeter(worker)
    meter._set(data, "micro_batch_size_per_gpu")
    with worker.engine.train_mode():
        worker.engine.train_batch(data, loss_function=loss)
    return whole(worker.engine.module.parameters())


def measured(found):
    return {
        "values": found.values, "length": found.length, "held": found.held, "fault": found.fault, **found.figures
    }  # fmt: skip


def products(rank, world, folder, **settings):
    worker = kit.engine(folder, **settings)
    meter = EngineMeter(worker)
    before, state = whole(worker.engine.module.parameters()), torch.get_rng_state()
    mine = rows_of(rank, world)
    found = meter.measure(batch(mine))
    same = all(map(torch.equal, before, whole(worker.engine.module.parameters())))
    left = [name for name, p in worker.engine.module.named_parameters() if p.grad is not None]
    return {
        "rows": mine,
        **measured(found),
        "same": same,
        "left": left,
        "drew": not torch.equal(state, torch.get_rng_state()),
    }


def next_update(rank, world, folder):
    """The weights behind an update, measured before it and not."""
    behind = []
    for measures in (True, False):
        worker = kit.engine(folder)
        mine = rows_of(rank, world)
        if measures:
            EngineMeter(worker).measure(batch(mine))
        behind.append(update(worker, batch(mine)))
    return {"same": all(map(torch.equal, *behind))}


def later(rank, world, folder):
    """Behind an update the validation gradient before is held, and one that the workers do not have is not."""
    worker = kit.engine(folder)
    meter, mine = EngineMeter(worker), rows_of(rank, world)
    fresh = meter.measure(batch(mine, validated=False))
    first = meter.measure(batch(mine))
    update(worker, batch(mine))
    held = meter.measure(batch(mine, validated=False))
    return {"fresh": measured(fresh), "first": measured(first), "later": measured(held)}


def given(rank, world, folder):
    """verl's own old log-probs spare a pass; those of another policy are not used."""
    worker = kit.engine(folder)
    meter, mine = EngineMeter(worker), rows_of(rank, world)
    with worker.engine.eval_mode():
        own = meter._logprobs(batch(mine))
    lengths = [LENGTHS[row] for row in mine]
    right = kit.jagged([row[:length] for row, length in zip(own, lengths, strict=True)], torch.float32)
    wrong = kit.jagged([torch.full((length,), -3.0) for length in lengths], torch.float32)
    plain = meter.measure(batch(mine, old_log_probs=right))
    passes = []

    def counting(data, loss, forward_only=False):
        passes.append(forward_only)
        return forward(data, loss, forward_only=forward_only)

    forward, worker.engine.forward_backward_batch = worker.engine.forward_backward_batch, counting
    found = {}
    for name, logprobs in (("right", {"old_log_probs": right}), ("wrong", {"old_log_probs": wrong}), ("none", {})):
        for _ in range(2):
            passes.clear()
            found[name] = measured(meter.measure(batch(mine, validated=False, **logprobs)))
        found[name]["passes"] = len(passes)
    return {"plain": measured(plain), **found}


def faults(rank, world, folder):
    """What cannot be measured is said by all ranks alike, and what comes after is."""
    worker = kit.engine(folder)
    meter, mine = EngineMeter(worker), rows_of(rank, world)
    data = batch(mine)
    if rank == 0:
        data["advantages"].values()[0] = torch.nan
    nan = measured(meter.measure(data))
    data = batch(mine)
    del data["advantages"]
    try:
        meter.measure(data)
        missing = ""
    except GradAlignError as error:
        missing = str(error)
    none = measured(meter.measure(batch(mine, validated=False)))
    return {"nan": nan, "missing": missing, "none": none, "right": measured(meter.measure(batch(mine)))}


def refused(rank, world, folder):
    """Engines that cannot be measured."""
    said = {}
    plain = kit.engine(folder)
    others = {
        "unsharded": _with(plain, module=kit.model()),  # FSDP1 needs a GPU to be made, and is refused likewise
        "ulysses": _with(plain, ulysses_sequence_parallel_size=2),
        "float16": _with(plain, scaler=object()),
    }
    for name, worker in others.items():
        try:
            EngineMeter(worker)
        except GradAlignError as error:
            said[name] = str(error)
    return said


def _with(worker, **named):
    engine = SimpleNamespace(**{"module": worker.engine.module, **named})
    return SimpleNamespace(engine=engine, engine_config=worker.engine_config, model_config=worker.model_config)


CASES = {
    "packed": products,
    "padded": lambda *where: products(*where, packed=False),
    "dynamic": lambda *where: products(*where, dynamic=True),
    "offload": lambda *where: products(*where, param_offload=True, optimizer_offload=True),
    "bf16": lambda *where: products(*where, dtype="bf16"),
    "lora": lambda *where: products(*where, lora=4),
    "next_update": next_update,
    "later": later,
    "given": given,
    "faults": faults,
    "refused": refused,
}


def main(rank, world, folder, *cases):
    rank, world = int(rank), int(world)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{world}", rank=rank, world_size=world)
    for case in cases:
        torch.save(CASES[case](rank, world, folder), f"{folder}/{case}.{world}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
