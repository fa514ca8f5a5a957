"""Directions over shards, with real gloo processes: each rank's products are those of the whole model.

The file runs itself once for each rank: `python test_forward_sharded.py RANK WORLD STORE`.
"""

import pytest
import torch
import torch.distributed as dist
from ranks import main, run_ranks
from torch import nn

from gradalign import DirectionError
from gradalign.forward import Direction, LocalParameter


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 11, bias=False)).double()


def logprobs_of(model):
    def logprobs(ids):
        return model(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]

    return logprobs


class Rows:
    """A rank's own rollouts."""

    def __init__(self, seed, rank):
        random = torch.Generator().manual_seed(seed + 10 * rank)
        self.ids = torch.randint(11, (4, 6), generator=random)
        self.weights = torch.randn(4, generator=random).double()
        self.mask = torch.rand(4, 5, generator=random) < 0.8

    def shares(self, model):
        return -(self.weights * (logprobs_of(model)(self.ids) * self.mask).sum(1))

    def loss(self, model):
        return self.shares(model).sum()


def exact_products(model, batch, against):
    named = list(model.parameters())
    found = []
    for share in batch.shares(model):
        gradient = torch.autograd.grad(share, named, retain_graph=True)
        found.append(sum((g * against[p]).sum() for p, g in zip(named, gradient, strict=True)))
    return torch.stack(found) / sum(g.square().sum() for g in against.values()).sqrt()


def reference(world):
    """The gradient of the sum over all ranks' validation rows, and its length."""
    model = build()
    for rank in range(world):
        Rows(1, rank).loss(model).backward()
    against = {p: p.grad.clone() for p in model.parameters()}
    return model, against, float(torch.cat([g.flatten() for g in against.values()]).norm())


def expect(direction, model, rank, world):
    """The length, the self-check and the products are those of the whole, on every rank."""
    whole, against, length = reference(world)
    assert abs(direction.length - length) < 1e-9 * length
    mine, batch = Rows(1, rank), Rows(2, rank)
    check = direction.check(logprobs_of(model), mine.ids, mine.weights, mine.mask)
    assert abs(check.quotient - 1) < 1e-4
    want = exact_products(whole, batch, against)
    with torch.no_grad():
        base = logprobs_of(model)(batch.ids)
    for more in ({}, {"logprobs_at": base}):
        found = direction.products(logprobs_of(model), batch.ids, batch.weights, batch.mask, **more)
        assert float((found - want).norm() / want.norm()) < 1e-3, (found, want)
    with torch.no_grad():
        assert torch.equal(base, logprobs_of(model)(batch.ids))
    sizes = [None] * world
    dist.all_gather_object(sizes, direction._step.size)
    return sizes


def check_fsdp2(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = build()
    mesh = init_device_mesh("cpu", (world,))
    fully_shard(model[1], mesh=mesh)
    fully_shard(model, mesh=mesh)
    direction = Direction(model, target=1e-6)
    (world * Rows(1, rank).loss(model)).backward()  # FSDP averages over ranks
    model.reshard()
    before = [p.to_local().clone() for p in model.parameters()]
    direction.take()
    assert all(p.grad is None for p in model.parameters())
    sizes = expect(direction, model, rank, world)
    assert len(set(sizes)) == 1
    model.reshard()
    assert all(torch.equal(b, p.to_local()) for b, p in zip(before, model.parameters(), strict=True))
    # A forward that keeps its graph leaves the root whole: it must be gathered anew with moved weights.
    batch = Rows(2, rank)
    held = logprobs_of(model)(batch.ids)
    found = direction.products(logprobs_of(model), batch.ids, batch.weights, batch.mask, logprobs_at=held.detach())
    whole, against, _ = reference(world)
    want = exact_products(whole, batch, against)
    assert float((found - want).norm() / want.norm()) < 1e-3
    held.sum().backward()


def check_replicated(rank, world):
    """Weights of which some ranks hold the same: they count once."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    torch.manual_seed(0)
    weights = {n: torch.randn(4, 3, dtype=torch.float64) for n in "abc"}
    model = nn.ParameterDict({
        "a": nn.Parameter(distribute_tensor(weights["a"], mesh, [Shard(0)])),
        "b": nn.Parameter(distribute_tensor(weights["b"], mesh, [Replicate()])),
        "c": nn.Parameter(distribute_tensor(weights["c"], mesh, [Shard(1)])),
    })  # fmt: skip
    gradients = {n: torch.randn(4, 3, dtype=torch.float64) for n in "abc"}
    for name, parameter in model.items():
        parameter.grad = distribute_tensor(gradients[name], mesh, parameter.placements)
    direction = Direction(model, method="central", target=1e-6)
    length = direction.take()
    assert abs(length - float(torch.cat([g.flatten() for g in gradients.values()]).norm())) < 1e-12
    mask = torch.ones(1, 12, dtype=torch.bool)

    def logprobs(name):
        return model[name].full_tensor().reshape(1, 12)

    for name in "abc":
        found = direction.products(logprobs, name, torch.ones(1), mask)
        assert abs(float(found[0]) + float(gradients[name].sum()) / length) < 1e-6


class Partitioned:
    """An engine that keeps runs of flattened weights, ZeRO's way, and a working copy made of them."""

    def __init__(self, rank, world):
        self.model, self.rank, self.world = build(), rank, world
        self.named = dict(self.model.named_parameters())
        self.masters = {n: self.cut(p.detach()).clone() for n, p in self.named.items()}

    def cut(self, tensor):
        flat = tensor.flatten()
        return flat[len(flat) * self.rank // self.world : len(flat) * (self.rank + 1) // self.world]

    def iter_local_parameters(self):
        for name, parameter in self.named.items():
            start = parameter.numel() * self.rank // self.world
            yield LocalParameter(
                f"module.{name}", parameter.shape, start, self.masters[name], lambda p=parameter: self.reduced(p)
            )

    def reduced(self, parameter):
        return self.cut(parameter.grad)

    def gather(self):
        for name, parameter in self.named.items():
            pieces = [None] * self.world
            dist.all_gather_object(pieces, self.masters[name])
            parameter.data.copy_(torch.cat(pieces).view_as(parameter))


def check_partitioned(rank, world):
    engine = Partitioned(rank, world)
    direction = Direction(parameters=engine, synchronize=engine.gather, group=dist.group.WORLD, target=1e-6)
    Rows(1, rank).loss(engine.model).backward()
    for parameter in engine.model.parameters():
        dist.all_reduce(parameter.grad)
    direction.take()
    assert all(p.grad is not None for p in engine.model.parameters())
    assert len(set(expect(direction, engine.model, rank, world))) == 1


def check_ddp(rank, world):
    """Whole weights on every rank: v is the same everywhere, and the rows are each rank's own."""
    inner = build()
    model = nn.parallel.DistributedDataParallel(inner)
    direction = Direction(model, group=dist.group.WORLD, target=1e-6)
    (world * Rows(1, rank).loss(model)).backward()
    direction.take()
    expect(direction, inner, rank, world)


def check_a_rank_that_fails(rank, world):
    """What fails on one rank alone fails on all, and none waits for the other."""
    inner = build()
    model = nn.parallel.DistributedDataParallel(inner)
    mine = Rows(1, rank)
    wrong = mine.ids.float() if rank else None  # no index: raises
    for method, words in (("auto", "."), ("central", "another rank" if rank == 0 else "Long")):
        direction = Direction(model, group=dist.group.WORLD, method=method)
        (world * mine.loss(model)).backward()
        direction.take()
        with pytest.raises((DirectionError, RuntimeError), match=words):
            direction.check(logprobs_of(inner), mine.ids if wrong is None else wrong, mine.weights, mine.mask)
        assert direction.checked is None


CHECKS = [check_fsdp2, check_replicated, check_partitioned, check_ddp, check_a_rank_that_fails]


def test_every_rank_has_the_products_of_the_whole_model(tmp_path):
    run_ranks(__file__, 2, tmp_path / "store", timeout=170)


@pytest.mark.parametrize(("counted", "length"), [(True, 2.0), (False, 1.0)])
def test_a_part_that_another_rank_counts(counted, length):
    parts = [
        LocalParameter("a", (1,), 0, torch.zeros(1), torch.ones(1)),
        LocalParameter("b", (3,), 0, torch.zeros(3), torch.ones(3), counted),
    ]
    assert Direction(parameters=parts).take() == length


if __name__ == "__main__":
    main(CHECKS)
