"""`Sketcher.capture()` under FSDP2, in gloo processes: one backward gives every rank what the whole model gives."""

from pathlib import Path

import pytest
import torch
from pageblocks import blocks_of
from ranks import main, run_ranks
from shardedkit import Rows, build, captured, close, loss_of, mean_gradients, on_mesh, shard

from gradalign import SketchError
from gradalign.sketch import Preconditioner, Sketcher


def check_equals_the_whole_model(rank, world, mesh):
    rows = Rows(rank, world)
    for tied in (False, True):
        plain = build(tied)
        wanted = captured(Sketcher(plain, dim=64), plain, *rows.all).sketches
        gradients = mean_gradients(plain, rows)
        for reshard in (True, False, None):
            model = shard(build(tied), mesh, reshard_after_forward=reshard)
            sketcher = Sketcher(model, dim=64)
            left = captured(sketcher, model, rows.ids, rows.weights, rows.index, keep_grad=False)
            close(left.sketches, wanted)
            assert all(p.grad is None for p in model.parameters())
            kept = captured(sketcher, model, rows.ids, rows.weights, rows.index)
            close(kept.sketches, wanted)
            for name, parameter in model.named_parameters():
                close(parameter.grad.full_tensor(), gradients[name])


def check_lora(rank, world, mesh):
    peft = pytest.importorskip("peft", reason="comes with the extra trl")

    def adapted():
        model = peft.get_peft_model(build(), peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"]))
        torch.manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
        return model

    rows, plain, model = Rows(rank, world), adapted(), adapted()
    shard(model.get_base_model(), mesh)
    wanted = captured(Sketcher(plain, dim=64), plain, *rows.all).sketches
    found = captured(Sketcher(model, dim=64), model, rows.ids, rows.weights, rows.index, keep_grad=False)
    close(found.sketches, wanted)


def check_mixed_precision(rank, world, mesh):
    """As a model whose parameters are bfloat16, to bfloat16's own rounding of sums over rows."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    rows, plain = Rows(rank, world), build()
    for parameter in plain.parameters():
        parameter.data = parameter.data.bfloat16()
    wanted = captured(Sketcher(plain, dim=64), plain, *rows.all).sketches
    model = shard(build(), mesh, mp_policy=policy)
    sketcher = Sketcher(model, dim=64)
    for keep in (False, True):
        found = captured(sketcher, model, rows.ids, rows.weights, rows.index, keep_grad=keep)
        close(found.sketches, wanted, tolerance=2e-2)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def check_checkpointing(rank, world, mesh):
    rows, plain = Rows(rank, world), build()
    wanted = captured(Sketcher(plain, dim=64), plain, *rows.all).sketches
    gradients = mean_gradients(plain, rows)
    for reentrant in (False, True):
        model = shard(build(), mesh).train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        sketcher = Sketcher(model, dim=64)
        for keep in (False, True):
            found = captured(sketcher, model, rows.ids, rows.weights, rows.index, keep_grad=keep)
            close(found.sketches, wanted)
        for name, parameter in model.named_parameters():
            close(parameter.grad.full_tensor(), gradients[name])


def check_exact(rank, world, mesh):
    """Products with a sharded validation gradient, and norms; of problems on several ranks norms are refused by all."""
    rows, plain = Rows(rank, world, whole=True), build()
    model = shard(build(), mesh)
    sketcher, alone = Sketcher(model, dim=64), Sketcher(plain, dim=64)
    other = Rows(rank, world)
    loss_of(model, other.ids, other.weights).backward()
    loss_of(plain, *other.all).backward()
    against, whole = sketcher.gradients(), alone.gradients()
    wanted = captured(alone, plain, *rows.all, against=whole)
    found = captured(sketcher, model, rows.ids, rows.weights, rows.index, against=against, keep_grad=False)
    close(found.sketches, wanted.sketches)
    close(found.dots, wanted.dots)
    close(found.norms, wanted.norms)
    with pytest.raises(SketchError, match=r"problems \[.*\] have rows on several ranks"):
        captured(sketcher, model, other.ids, other.weights, torch.zeros_like(other.index), against=against)


def check_preconditioned_and_reproducible(rank, world, mesh):
    rows, plain = Rows(rank, world), build()
    model = shard(build(), mesh)
    made = []
    for each, part, share in ((plain, rows.all, 1 / world), (model, (rows.ids, rows.weights), 1)):
        optimizer = torch.optim.Adam(each.parameters(), lr=1e-3)
        (share * loss_of(each, *part)).backward()
        optimizer.step()
        made.append(Preconditioner.from_adam(each, optimizer, name="some"))
        each.zero_grad()
    for options in ({"preconditioner": True}, {"reproducible": True}, {"preconditioner": True, "reproducible": True}):
        chosen = [options | ({"preconditioner": p} if "preconditioner" in options else {}) for p in made]
        wanted = captured(Sketcher(plain, dim=64, **chosen[0]), plain, *rows.all).sketches
        sketcher = Sketcher(model, dim=64, **chosen[1])
        found = captured(sketcher, model, rows.ids, rows.weights, rows.index)
        close(found.sketches, wanted, tolerance=1e-4)
        again = captured(sketcher, model, rows.ids, rows.weights, rows.index, onto=found)
        close(again.sketches, 2 * wanted, tolerance=1e-4)


def check_the_next_update(rank, world, mesh):
    """Parameters after a step are what they are where nothing was captured, bit for bit."""
    rows, after = Rows(rank, world), []
    for captures in (False, True):
        model = shard(build(), mesh)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(2):
            with torch.no_grad():  # leaves the outermost module gathered
                model(input_ids=rows.ids)
            if captures:
                captured(Sketcher(model, dim=64), model, rows.ids, rows.weights, rows.index, keep_grad=False)
            optimizer.zero_grad()
            loss_of(model, rows.ids, rows.weights).backward()
            optimizer.step()
        after.append([p.full_tensor() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*after, strict=True))


def check_the_page(rank, world, mesh):
    """The example of docs/sketch.md, as printed."""
    page = Path(__file__).parents[3] / "docs/sketch.md"
    code = next(block.code for block in blocks_of(page.read_text(), "python") if "fully_shard" in block.code)
    rows, plain = Rows(rank, world), build()

    def loss(output):
        return output.logits.log_softmax(-1)[..., 3].sum()

    with Sketcher(plain).capture(rows.all[2] % 3, problems=3) as wanted:
        loss(plain(rows.all[0])).backward()
    scope = {"Sketcher": Sketcher, "model": build(), "mesh": mesh, "input_ids": rows.ids, "loss": loss}
    scope["problem_index"] = rows.index % 3
    exec(code, scope)
    close(scope["captured"].sketches, wanted.sketches)


CHECKS = [
    check_the_page,
    check_equals_the_whole_model,
    check_lora,
    check_mixed_precision,
    check_checkpointing,
    check_exact,
    check_preconditioned_and_reproducible,
    check_the_next_update,
]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.long)])
def test_every_rank_has_the_sketches_of_the_whole_model(world, tmp_path):
    run_ranks(__file__, world, tmp_path / "store", timeout=500)


if __name__ == "__main__":
    main(on_mesh(CHECKS))
