"""What capture costs under FSDP2: ratios to a plain forward and backward, measured side by side on all ranks.

    torchrun --nproc-per-node 2 tests/bench/bench_sharded.py [--repeats N] [--only tiny large]

Each rank has half of the rollouts, gloo processes on the CPU. Plain is what an update does: gathers, forward, backward and
the reduction of gradients. One backward a problem is `from_grads()` after each, all ranks at one problem.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from bench_sketch import best, large_model, loss_of, model_of, report
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gradalign.sketch import Sketcher


def contestants(model: nn.Module, ids: Tensor, problems: int) -> dict[str, Callable[[], object]]:
    """Over one batch: ids [R, T] of this rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    spread = torch.arange(problems).repeat_interleave(len(ids) // problems)  # of each problem, a share on every rank
    whole = torch.arange(rank, problems, world).repeat_interleave(len(ids) // (problems // world))
    sketcher = Sketcher(model)
    advantages = torch.randn(len(ids), generator=torch.Generator().manual_seed(rank))

    def plain(rows: slice | Tensor = slice(None)) -> None:
        model.zero_grad()
        loss_of(model, ids[rows], advantages[rows]).backward()

    plain()
    validation = sketcher.gradients()

    def capture(index: Tensor, keep_grad: bool, against: dict[str, Tensor] | None = None) -> None:
        model.zero_grad()
        with sketcher.capture(index, problems=problems, keep_grad=keep_grad, against=against):
            loss_of(model, ids, advantages).backward()

    def each() -> None:
        for problem in range(problems):
            plain(spread == problem)
            sketcher.from_grads()

    return {
        "plain forward + backward": plain,
        "capture, .grad kept": lambda: capture(spread, True),
        "capture, .grad left alone": lambda: capture(spread, False),
        "capture, exact dots and norms": lambda: capture(whole, False, validation),
        "one backward a problem": each,
    }


def bench(title: str, model: nn.Module, ids: Tensor, problems: int, repeats: int) -> None:
    """One model, sharded by layers."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    seconds = best(contestants(model, ids, problems), repeats)
    if dist.get_rank() == 0:
        report(title, seconds, "plain forward + backward")


def tiny(repeats: int) -> None:
    """The demo's model, 32 groups of 8 rollouts of 12 tokens."""
    model = model_of(
        vocab_size=20, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4,
    )  # fmt: skip
    ids = torch.randint(0, 20, (32 * 8 // dist.get_world_size(), 12))
    bench("tiny model, 32 problems x 8 rollouts x 12 tokens", model, ids, 32, repeats)


def large(repeats: int) -> None:
    """25 million parameters, 1,024 tokens a problem."""
    ids = torch.randint(0, 512, (4 * 4 // dist.get_world_size(), 256))
    bench("26M parameters, 4 problems x 4 rollouts x 256 tokens", large_model(), ids, 4, repeats)


BENCHES = {"tiny": tiny, "large": large}


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in options.only:
        BENCHES[name](options.repeats)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
