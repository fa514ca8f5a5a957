"""Sketches of sharded gradients, with real gloo processes: equal on every rank to the sketch of the whole gradient.

The file runs itself once for each rank: `python test_sketch_sharded.py RANK WORLD STORE`.
"""

import pytest
import torch
import torch.distributed as dist
from ranks import main, run_ranks
from torch import nn

from gradalign import SketchError
from gradalign.sketch import LocalGradient, Preconditioner, Sketcher, fsdp1_local_grads
from gradalign.wire.countsketch import sketch_gradients


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3, bias=False)).double()


IDS = torch.arange(24).reshape(4, 6) % 11
INDEX = torch.tensor([0, 1, 1, 0])


def whole_gradients():
    model = build()
    model(IDS).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def reference(gradients):
    return torch.from_numpy(sketch_gradients({n: g.numpy() for n, g in gradients.items()}, dim=64, seed=0))


def equal(row):
    torch.testing.assert_close(row, reference(whole_gradients()), rtol=0, atol=1e-10)


def check_fsdp2(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = build()
    mesh = init_device_mesh("cpu", (world,))
    fully_shard(model[1], mesh=mesh)
    fully_shard(model, mesh=mesh)
    sketcher = Sketcher(model, dim=64, dtype=torch.float64)
    assert sketcher.projection == Sketcher(build(), dim=64).projection
    model(IDS).square().sum().backward()
    equal(sketcher.from_grads())
    model[1].weight.grad = None
    gradients = whole_gradients()
    del gradients["1.weight"]
    torch.testing.assert_close(sketcher.from_grads(), reference(gradients), rtol=0, atol=1e-10)


def check_placements(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    meshes = [(init_device_mesh("cpu", (world,)), 1)]
    if world == 4:
        meshes.append((init_device_mesh("cpu", (2, 2)), 2))
    for mesh, axes in meshes:
        for first in (Shard(0), Shard(1), Replicate()):
            for second in (Shard(0), Shard(1), Replicate()) if axes == 2 else (None,):
                model = build()
                for name, gradient in whole_gradients().items():
                    owner = model.get_submodule(name.split(".")[0])
                    places = [p if gradient.ndim > 1 or p != Shard(1) else Replicate() for p in (first, second) if p]
                    leaf = name.split(".")[1]
                    weight = nn.Parameter(distribute_tensor(getattr(owner, leaf).detach(), mesh, places))
                    weight.grad = distribute_tensor(gradient, mesh, places)
                    setattr(owner, leaf, weight)
                equal(Sketcher(model, dim=64, dtype=torch.float64).from_grads())


def check_local_parts(rank, world):
    """Every parameter flattened and cut into runs, as FSDP1 and ZeRO do."""
    sketcher = Sketcher(build(), dim=64, dtype=torch.float64)
    parts = []
    for name, gradient in whole_gradients().items():
        flat = gradient.flatten()
        start, stop = len(flat) * rank // world, len(flat) * (rank + 1) // world
        parts.append(LocalGradient(f"module.{name}", tuple(gradient.shape), start, flat[start:stop]))
    equal(sketcher.from_local_grads(parts, group=dist.group.WORLD))


def check_ddp(rank, world):
    """Each rank captures the sketches of its own problems, while DDP averages `.grad`."""
    model = nn.parallel.DistributedDataParallel(build())
    sketcher = Sketcher(model, dim=64, dtype=torch.float64)
    mine = (IDS + rank) % 11
    with sketcher.capture(INDEX, keep_grad=False):
        model(mine).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    with sketcher.capture(INDEX) as captured:
        model(mine).square().sum().backward()
    alone = Sketcher(plain := build(), dim=64, dtype=torch.float64)
    assert alone.projection == sketcher.projection
    with alone.capture(INDEX) as want:
        plain(mine).square().sum().backward()
    torch.testing.assert_close(captured.sketches, want.sketches, rtol=0, atol=1e-10)
    for name, parameter in plain.named_parameters():
        mean = parameter.grad.clone()
        dist.all_reduce(mean)
        torch.testing.assert_close(model.module.get_parameter(name).grad, mean / world)


class Flattened:
    """An engine that keeps every parameter as runs of a flat buffer, and can say so."""

    def __init__(self, gradients, rank, world):
        self.gradients, self.rank, self.world = gradients, rank, world

    def iter_local_grads(self):
        for name, gradient in self.gradients.items():
            flat = gradient.flatten()
            start, stop = (len(flat) * at // self.world for at in (self.rank, self.rank + 1))
            yield name, gradient.shape, start, flat[start:stop]


def other_gradients():
    model = build()
    model(IDS[:2]).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


def equal_exact(exact):
    equal(exact.sketch)
    ours, others = (torch.cat([g.flatten() for g in f().values()]) for f in (whole_gradients, other_gradients))
    assert exact.norm == pytest.approx(float(ours.norm()), rel=1e-12)
    assert exact.dot == pytest.approx(float(ours @ others / others.norm()), rel=1e-12)


def sharded(gradients, mesh, places):
    """A model whose weights and gradients are DTensors."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    model = build()
    for name, gradient in gradients.items():
        owner, leaf = model.get_submodule(name.split(".")[0]), name.split(".")[1]
        here = [p if gradient.ndim > 1 or p != Shard(1) else Replicate() for p in places]
        weight = nn.Parameter(distribute_tensor(getattr(owner, leaf).detach(), mesh, here))
        weight.grad = distribute_tensor(gradient, mesh, here)
        setattr(owner, leaf, weight)
    return model


def check_exact_and_preconditioned(rank, world):
    """Products by local parts; multipliers given whole and in the parameters' placement; fixed point: no bit changes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, world // 2))
    multipliers = {
        n: torch.rand(g.shape, generator=torch.Generator().manual_seed(5)) + 0.1 for n, g in GRADIENTS.items()
    }
    reproducible = Sketcher(plain := build(), dim=64, reproducible=True)
    for name, parameter in plain.named_parameters():
        parameter.grad = GRADIENTS[name]
    bits = reproducible.from_grads()
    scaled = reference({n: g * multipliers[n].double().sqrt() for n, g in GRADIENTS.items()})
    for places in ((Shard(0), Shard(1)), (Shard(0), Shard(0)), (Replicate(), Shard(1))):
        model = sharded(other_gradients(), mesh, places)
        against = Sketcher(model, dim=64).gradients()
        model = sharded(GRADIENTS, mesh, places)
        equal_exact(Sketcher(model, dim=64, dtype=torch.float64).from_grads(against=against))
        assert torch.equal(Sketcher(model, dim=64, reproducible=True).from_grads(), bits)
        with pytest.raises(SketchError, match=r"0\.weight is sharded as .* whole; take sketcher"):
            Sketcher(model, dim=64).from_grads(against=other_gradients())
        for whole in (True, False):
            given = {
                n: m if whole else distribute_tensor(m, mesh, model.get_parameter(n).placements)
                for n, m in multipliers.items()
            }
            side = Sketcher(model, dim=64, dtype=torch.float64, preconditioner=Preconditioner(given, name="some"))
            exact = side.from_grads(against=side.gradients())
            torch.testing.assert_close(exact.sketch, scaled, rtol=0, atol=1e-5)
            assert exact.dot == pytest.approx(exact.norm, rel=1e-6)


def check_protocol(rank, world):
    """The local parts of an engine, with products and in fixed point."""
    ours, others = (Flattened(f(), rank, world) for f in (whole_gradients, other_gradients))
    sketcher = Sketcher(build(), dim=64, dtype=torch.float64)
    equal_exact(sketcher.from_local_grads(ours, group=dist.group.WORLD, against=others))
    rows = Sketcher(build(), dim=64, reproducible=True)
    row = rows.from_local_grads(ours, group=dist.group.WORLD)
    alone = rows.from_local_grads(Flattened(whole_gradients(), 0, 1))
    assert torch.equal(row, alone)
    with pytest.raises(SketchError, match="differ"):
        sketcher.from_local_grads(ours, against=list(others.iter_local_grads())[1:])


def check_fsdp1(rank, world):
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    for strategy in (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP):
        for original in (False, True):
            options = {
                "use_orig_params": original, "device_id": torch.device("cpu"), "sharding_strategy": strategy,
            }  # fmt: skip
            model = build()
            sketcher = Sketcher(model, dim=64, dtype=torch.float64)
            model[1] = FullyShardedDataParallel(model[1], **options)
            model = FullyShardedDataParallel(model, **options)
            model(IDS[:2]).square().sum().backward()
            against = [p._replace(tensor=p.tensor.clone()) for p in fsdp1_local_grads(model)]
            model.zero_grad()
            model(IDS).square().sum().backward()
            parts = fsdp1_local_grads(model)
            equal_exact(sketcher.from_local_grads(parts, group=dist.group.WORLD, against=against))
            with pytest.raises(SketchError, match="wrapped in FSDP1"):
                Sketcher(model)
    alone = FullyShardedDataParallel(
        build(), device_id=torch.device("cpu"), sharding_strategy=ShardingStrategy.NO_SHARD
    )
    with pytest.raises(SketchError, match="with NO_SHARD"):
        list(fsdp1_local_grads(alone))


GRADIENTS = whole_gradients()
CHECKS = [
    check_exact_and_preconditioned,
    check_protocol,
    check_fsdp1,
    check_fsdp2,
    check_placements,
    check_local_parts,
    check_ddp,
]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.long)])
def test_every_rank_has_the_sketch_of_the_whole_gradient(world, tmp_path):
    run_ranks(__file__, world, tmp_path / "store", timeout=500)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (LocalGradient("1.weight", (7, 6), (6, 0), torch.zeros(2, 6)), r"1\.weight has shape \(2, 6\) at offset \(6, 0\)"),
        (LocalGradient("1.weight", (7, 6), 40, torch.zeros(3)), r"1\.weight has shape \(3,\) at offset 40"),
        (LocalGradient("1.weight", (7, 6), (0,), torch.zeros(3, 6)), "which does not lie in"),
        (LocalGradient("1.weight", (3, 6), (0, 0), torch.zeros(3, 6)), r"is of shape \(3, 6\); .* for \(7, 6\)"),
        (LocalGradient("other", (3,), 0, torch.zeros(3)), "no parameter of that name"),
        (LocalGradient("1.bias", (7,), 2, torch.full((3,), torch.nan)), r"1\.bias holds inf or NaN"),
    ],
)  # fmt: skip
def test_refuses_parts_that_do_not_fit(part, message):
    with pytest.raises(SketchError, match=message):
        Sketcher(build(), dim=16).from_local_grads([part])


if __name__ == "__main__":
    main(CHECKS)
