"""What docs/at-scale.md computes of bytes between ranks is what FSDP2 really asks for, with two gloo processes.

The file runs itself once for each rank: `python test_cost_between_ranks.py RANK WORLD STORE`.
"""

from dataclasses import replace

import costs
import pytest
import torch
from collectives import Collectives
from costkit import JOB, build, ids_of, logprobs_of, with_lora
from ranks import main, run_ranks
from tensorbytes import peak_bytes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from gradalign.forward import Direction
from gradalign.forward.parameters.weights import resharder
from gradalign.sketch import Sketcher

SHARDED = replace(JOB, gpus=2, problems=4, rollouts=4, at_once=4)
FEW = 2000
"""Bytes that agreements and sums of scalars may take: no share of what is looked at here."""


def sharded(job, world, narrow=True):
    model = with_lora(build(), job.lora_rank) if job.lora_rank else build()
    layers = (model.base_model.model if job.lora_rank else model).model.layers
    options = {} if job.reshard == "layers" else {"reshard_after_forward": job.reshard == "all"}
    if narrow:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh("cpu", (world,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def counted(act):
    with Collectives() as bytes_:
        act()
    return bytes_


def forward(model, job):
    resharder(model)()
    with torch.no_grad():
        return logprobs_of(model, job.at_once)(ids_of(job))


def backward(model, job, weight=1.0):
    for ids in ids_of(job).split(job.at_once):
        (-weight * logprobs_of(model, job.at_once)(ids).sum()).backward()


def close(found, wanted):
    assert found == pytest.approx(wanted, rel=0.01)


def check_gathers_and_reductions(_rank, world):
    for reshard, rank in (("all", 0), ("all", 4), ("layers", 0), ("none", 0)):
        job = replace(SHARDED, reshard=reshard, lora_rank=rank)
        model = sharded(job, world)
        assert job.micro_batches(job.problems) == 2
        close(counted(lambda: forward(model, job)).gathered, costs.gathered(job, backward=False))  # noqa: B023
        resharder(model)()
        found = counted(lambda: backward(model, job))  # noqa: B023
        close(found.gathered, costs.gathered(job, backward=True))
        close(found.scattered, costs.reduced_gradients(job))


def taken(model, job, method, target=0.1):
    """A direction and what its products take."""
    direction, logprobs = Direction(model, method=method, target=target), logprobs_of(model, job.at_once)
    ids = ids_of(job)
    mask = torch.ones(len(ids), ids.shape[1] - 1)
    backward(model, job, job.gpus / float(mask.sum()))  # FSDP2 averages over ranks
    with Collectives() as bytes_:
        direction.take()
    assert bytes_.gathered == bytes_.scattered == 0 < bytes_.added < FEW
    more = {"logprobs_at": forward(model, job)} if method == "one-sided" else {}
    return direction, (logprobs, ids, torch.ones(len(ids)) / mask.sum(), mask), more


def check_products(_rank, world):
    """In float32, where the self-check needs no shorter step."""
    model = sharded(SHARDED, world, narrow=False)
    one_pass = costs.gathered(SHARDED, backward=False, width=costs.WIDE)
    for passes, method in ((1, "one-sided"), (2, "central")):
        direction, given, more = taken(model, SHARDED, method, target=0.002)
        checked = counted(lambda: direction.check(*given, **more)).gathered / one_pass  # noqa: B023
        assert checked >= 3  # and more while the step is found
        found = counted(lambda: direction.products(*given, **more))  # noqa: B023
        close(found.gathered, passes * one_pass)
        assert found.scattered == 0 < found.added < FEW
    close(counted(lambda: direction.check(*given)).gathered, 3 * one_pass)


def check_memory_of_products(_rank, world):
    for rank in (0, 4):
        job = replace(SHARDED, lora_rank=rank, problems=1, at_once=1)
        model = sharded(job, world)
        direction, given, _ = taken(model, job, "central")
        direction.products(*given)
        held = sum(part.nbytes for part in direction.state_dict()["parts"].values())
        close(held, costs.part(job))
        passing = peak_bytes(lambda: direction.products(*given)) - peak_bytes(lambda: forward(model, job))  # noqa: B023
        assert passing == pytest.approx(costs.part(job), rel=0.15)


def check_capture(rank, world):
    """The gathers of a backward and sums of sketches after every micro-batch; gradients where an update keeps them."""
    model, job = sharded(SHARDED, world), SHARDED
    sketcher, index = Sketcher(model, dim=job.dim), torch.arange(rank, job.problems, world).repeat_interleave(4)
    assert sketcher.coverage

    def capture(keep):
        done = None
        for ids, part in zip(ids_of(job).split(job.at_once), index.split(job.at_once), strict=True):
            with sketcher.capture(part, problems=job.problems, keep_grad=keep, onto=done) as done:
                logprobs_of(model, job.at_once)(ids).sum().backward()

    for keep, reduced in ((False, 0), (True, costs.reduced_gradients(job))):
        found = counted(lambda: capture(keep))  # noqa: B023
        close(found.gathered, costs.gathered(job, backward=True))
        close(found.scattered, reduced)
        assert 0 <= found.added - costs.reduced_sketches(job) < FEW


def check_one_backward_a_problem(_rank, world):
    model, job = sharded(SHARDED, world), replace(SHARDED, problems=1)
    sketcher = Sketcher(model, dim=job.dim)

    def all_problems():
        for _ in range(SHARDED.problems):
            model.zero_grad()
            backward(model, job)
            sketcher.from_grads()

    found = counted(all_problems)
    close(found.gathered, SHARDED.problems * costs.gathered(job, backward=True))
    close(found.scattered + found.added, costs.reduced_one_by_one(SHARDED))


CHECKS = [
    check_gathers_and_reductions, check_products, check_memory_of_products, check_capture, check_one_backward_a_problem,
]  # fmt: skip


@pytest.mark.long
def test_bytes_are_as_computed(tmp_path):
    run_ranks(__file__, 2, tmp_path / "store", timeout=500)


if __name__ == "__main__":
    main(CHECKS)
