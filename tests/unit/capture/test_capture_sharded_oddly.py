"""`Sketcher.capture()` of models that FSDP2 shards in part or in odd ways, and what is refused, by all ranks alike."""

import pytest
import torch
from ranks import main, run_ranks
from shardedkit import PROBLEMS, Rows, build, captured, close, on_mesh, shard
from torch import nn

from gradalign import SketchError
from gradalign.sketch import Sketcher


class Partly(nn.Module):
    """A model of which a part may stay whole, or be used in odd ways; rows [B, 4]."""

    def __init__(self, use=lambda model, x: x @ model.odd):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.odd = nn.Linear(4, 6), nn.Linear(6, 3), nn.Parameter(torch.randn(3, 3))
        self.scale = nn.Parameter(torch.randn(3))
        self.use = use

    def forward(self, x):
        return self.use(self, self.second(self.first(x).tanh()))

    def log_probs(self, x):
        return self.use(self, self.second(self.first(x).tanh()))


USES = [
    lambda model, x: x @ model.odd,
    lambda model, x: (x @ model.odd.t()) * (1 + model.odd[0]),
    lambda model, x: x @ (model.odd * model.scale.exp() / model.odd.norm()),
]


def check_sharded_in_part(rank, world, mesh):
    """Layers that are not sharded, modules of one group, replicas, and a method in place of forward."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    xs = torch.randn(world * 3, 4, generator=torch.Generator().manual_seed(2))
    index = torch.arange(world * 3) % PROBLEMS
    mine = slice(rank * 3, rank * 3 + 3)

    def first_alone(model):
        fully_shard(model.first, mesh=mesh)

    def in_one_group(model):
        fully_shard([model.first, model.second], mesh=mesh)
        fully_shard(model, mesh=mesh)

    def ignored(model):
        fully_shard(model, mesh=mesh, ignored_params={model.odd})

    def replicas(model):
        fully_shard(model, mesh=init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("replicas", "shards")))

    def method(model):
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "log_probs")

    def sketches(model, call, x, index, keep):
        with Sketcher(model, dim=64).capture(index, problems=PROBLEMS, keep_grad=keep) as found:
            call(x).square().sum().backward()
        return found.sketches

    for use in USES:
        plain = Partly(use)
        wanted = sketches(plain, plain, xs, index, True)
        for way in (first_alone, in_one_group, ignored, replicas, method):
            for keep in (False, True):
                way(model := Partly(use))
                call = model.log_probs if way is method else model
                close(sketches(model, call, xs[mine], index[mine], keep), wanted)


class Kernel(torch.autograd.Function):
    """A fused kernel, whose use of a weight no call of torch's API shows."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight.T, x.T @ gradient


def check_refusals(rank, world, mesh):
    """By name, on all ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    x, index = torch.randn(3, 4), torch.tensor([0, 1, 1])

    def refused(model, message, call=None):
        for keep in (False, True):
            with pytest.raises(SketchError, match=message), Sketcher(model, dim=64).capture(index, keep_grad=keep):
                (call or model)(x).square().sum().backward()

    for way in (lambda model: model, lambda model: model.log_probs):
        model = Partly(lambda model, x: Kernel.apply(x, model.odd))
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "log_probs")
        refused(model, "odd got a gradient from an operation that capture did not see", way(model))
    model = Partly(lambda model, x: torch.cdist(x, model.odd))
    fully_shard(model, mesh=mesh)
    refused(model, "odd is used by torch.*cdist")
    model = Partly()
    parallelize_module(model, mesh, {"first": ColwiseParallel()})
    refused(model, r"first\.weight is a DTensor where .*gradalign\.forward")
    if world == 4:
        both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        model = Partly()
        parallelize_module(model, both["tp"], {"first": ColwiseParallel()})
        fully_shard(model.first, mesh=both["dp"])
        refused(model, r"first\.weight is a DTensor where")
        model = Partly()
        fully_shard(model.first, mesh=mesh)
        fully_shard(model, mesh=both["dp"])
        refused(model, "is sharded over .*of one mesh")


def check_ranks_that_disagree(rank, world, mesh):
    rows, model = Rows(rank, world), shard(build(), mesh)
    sketcher = Sketcher(model, dim=64)
    with pytest.raises(SketchError, match=rf"different values of problems, from 5 to {4 + world}"):
        sketcher.capture(rows.index, problems=5 + rank).__enter__()
    with pytest.raises(SketchError, match="different values of keep_grad, from 0 to 1"):
        sketcher.capture(rows.index, problems=5, keep_grad=rank == 0).__enter__()
    with pytest.raises(SketchError, match="different values of projection"):
        Sketcher(model, dim=64, seed=rank).capture(rows.index, problems=5).__enter__()
    with pytest.raises(SketchError, match="-1 on every rank"):
        sketcher.capture(torch.full_like(rows.index, -1), problems=5).__enter__()


def check_a_rank_without_rows(rank, world, mesh):
    """It runs forward and backward with the others, whose gathers need it, and adds nothing."""
    rows, model, plain = Rows(rank, world), shard(build(), mesh), build()
    none = [torch.full_like(index, -1) if each == 0 else index for each, (_, _, index) in enumerate(rows.parts)]
    wanted = captured(Sketcher(plain, dim=64), plain, *rows.all[:2], torch.cat(none)).sketches
    close(captured(Sketcher(model, dim=64), model, rows.ids, rows.weights, none[rank]).sketches, wanted)


CHECKS = [check_sharded_in_part, check_refusals, check_ranks_that_disagree, check_a_rank_without_rows]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.long)])
def test_odd_models_are_right_or_refused_by_every_rank(world, tmp_path):
    run_ranks(__file__, world, tmp_path / "store", timeout=500)


if __name__ == "__main__":
    main(on_mesh(CHECKS))
