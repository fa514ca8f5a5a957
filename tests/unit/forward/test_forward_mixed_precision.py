"""Directions over FSDP2's shards in 16 bits: products of two ranks beside those of the whole model, within a stated band.

The file runs itself once for each rank; alone it prints what was measured: `python FILE RANK WORLD STORE`.
"""

import pytest
import torch
from ranks import main, run_ranks
from shardedkit import VOCABULARY, build, shard

from gradalign import DirectionError
from gradalign.forward import Direction

ROWS, LENGTH = 12, 10
# Measured .9989, .05 and 1.00 by a policy, .998, .07 and .95 with shards of 16 bits.
LEAST_CORRELATION, LARGEST_ERROR, QUOTIENT = 0.99, 0.15, (0.9, 1.1)


def logprobs_of(model):
    def logprobs(ids):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        return logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]

    return logprobs


class Rows:
    """A rank's own rollouts."""

    def __init__(self, seed, rank):
        random = torch.Generator().manual_seed(seed + 10 * rank)
        self.ids = torch.randint(1, VOCABULARY, (ROWS, LENGTH), generator=random)
        self.weights = torch.randn(ROWS, generator=random) / (ROWS * LENGTH)
        self.mask = torch.rand(ROWS, LENGTH - 1, generator=random) < 0.8

    def shares(self, model):
        return -(self.weights * (logprobs_of(model)(self.ids) * self.mask).sum(1))

    def products(self, direction, model):
        return direction.products(logprobs_of(model), self.ids, self.weights, self.mask)


def exact_products(world, batch):
    """In float32, of the whole model, by a backward a row."""
    model = build()
    for rank in range(world):
        Rows(1, rank).shares(model).sum().backward()
    against = [p.grad.clone() for p in model.parameters()]
    length = torch.cat([g.flatten() for g in against]).norm()
    rows = [torch.autograd.grad(s, list(model.parameters()), retain_graph=True) for s in batch.shares(model)]
    return torch.stack([sum((g * v).sum() for g, v in zip(row, against, strict=True)) for row in rows]) / length


def whole_products(world, batch):
    """In bfloat16, of the whole model: its weights are roundings of float32 ones, which move."""
    model = build()
    masters = {name: p.detach().clone() for name, p in model.named_parameters()}
    direction = Direction(model.bfloat16(), method="central", target=0.1, masters=masters)
    for rank in range(world):
        Rows(1, rank).shares(model).sum().backward()
    direction.take()
    return batch.products(direction, model)


def taken(model, rank, world, **options):
    direction = Direction(model, **options)
    (world * Rows(1, rank).shares(model).sum()).backward()  # FSDP averages over ranks
    direction.take()
    return direction


def check_self(direction, model, rank):
    mine = Rows(1, rank)
    return direction.check(logprobs_of(model), mine.ids, mine.weights, mine.mask)


def expect(model, rank, world, **options):
    """Products by `auto` agree with the whole model's in 16 bits and with exact ones, and the self-check says so."""
    direction, batch = taken(model, rank, world, target=0.1, **options), Rows(2, rank)
    check, found = check_self(direction, model, rank), batch.products(direction, model)
    assert check.method == "central"
    assert QUOTIENT[0] < check.quotient < QUOTIENT[1]
    assert check.fidelity > LEAST_CORRELATION
    for name, want in (("exact", exact_products(world, batch)), ("in bfloat16", whole_products(world, batch))):
        correlation = float(torch.corrcoef(torch.stack([found, want.double()]))[0, 1])
        error = float((found - want).norm() / want.norm())
        print(f"{rank} {name}: r {correlation:.4f}, error {error:.3f}, quotient {check.quotient:.3f}, "
              f"told {check.fidelity:.4f}", flush=True)  # fmt: skip
        assert correlation > LEAST_CORRELATION
        assert error < LARGEST_ERROR


def sharded(world, dtype=torch.float32, **policy):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return shard(build().to(dtype), init_device_mesh("cpu", (world,)), mp_policy=MixedPrecisionPolicy(**policy))


POLICY = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}


def check_a_policy(rank, world):
    expect(sharded(world, **POLICY), rank, world)


def check_shards_of_16_bits(rank, world):
    expect(sharded(world, torch.bfloat16), rank, world)


def check_float32_is_refused(rank, world):
    """Its casts would write float32 into the buffers of 16 bits that weights are gathered in."""
    for model in (sharded(world, **POLICY), sharded(world, torch.bfloat16)):
        direction = taken(model, rank, world, method="float32")
        model.reshard()
        before = [p.to_local().clone() for p in model.parameters()]
        for act in (lambda d: check_self(d, model, rank), lambda d: Rows(2, rank).products(d, model)):  # noqa: B023
            with pytest.raises(DirectionError, match=r"FSDP2 gathers in torch\.bfloat16; take method='central'"):
                act(direction)
        model.reshard()
        assert all(torch.equal(b, p.to_local()) for b, p in zip(before, model.parameters(), strict=True))


def check_float32_of_float32_shards(rank, world):
    """Under autocast, where nothing is gathered in 16 bits."""
    model, batch = sharded(world), Rows(2, rank)
    with torch.autocast("cpu", torch.bfloat16):
        direction = taken(model, rank, world, method="float32")
        check, found = check_self(direction, model, rank), batch.products(direction, model)
    want = exact_products(world, batch)
    assert abs(check.quotient - 1) < 0.02
    assert float((found - want).norm() / want.norm()) < 0.05


CHECKS = [check_a_policy, check_shards_of_16_bits, check_float32_is_refused, check_float32_of_float32_shards]


@pytest.mark.slow
def test_products_in_16_bits_are_those_of_the_whole_model_within_a_band(tmp_path):
    run_ranks(__file__, 2, tmp_path / "store", timeout=500)


if __name__ == "__main__":
    main(CHECKS)
