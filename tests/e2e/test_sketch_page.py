"""The examples of docs/sketch.md, run as printed on a tiny model."""

from pathlib import Path

import torch
from pageblocks import blocks_of
from tiny_causal_lms import tiny

PAGE = (Path(__file__).parents[2] / "docs/sketch.md").read_text()


def test_every_python_block_runs_and_the_two_ways_agree(capsys):
    model = tiny()
    input_ids = torch.randint(3, 64, (6, 10), generator=torch.Generator().manual_seed(0))
    problem_index = torch.tensor([0, 0, 1, 1, 2, 2])

    def loss(output):
        return output.logits.float().log_softmax(-1)[..., 3].sum()

    optimizer = torch.optim.Adam(model.parameters())
    scope = {
        "model": model, "input_ids": input_ids, "problem_index": problem_index, "loss": loss, "optimizer": optimizer,
        "problems": range(3), "loss_of": lambda problem: loss(model(input_ids[problem_index == problem])),
    }  # fmt: skip
    together, one_by_one, fewer_bytes, exact, sharded, preconditioned = blocks_of(PAGE, "python")
    assert "fully_shard" in sharded.code  # runs in tests/unit/capture/test_capture_sharded.py
    exec(together.code, scope)
    assert "parameters" in capsys.readouterr().out
    sketches = scope["captured"].sketches
    assert sketches.shape == (3, 8192)
    exec(one_by_one.code, scope)
    torch.testing.assert_close(torch.stack(scope["rows"]), sketches, rtol=1e-4, atol=1e-4 * float(sketches.abs().max()))
    exec(fewer_bytes.code, scope)
    scope["client"].close()
    exec(exact.code, scope)
    norms = scope["captured"].norms
    assert norms.dtype == torch.float64
    torch.testing.assert_close(norms, sketches.double().norm(dim=1), rtol=0.1, atol=0)  # the sketch errs by 1/sqrt(k)
    optimizer.step()
    exec(preconditioned.code, scope)
    assert scope["validation"].projection == scope["candidates"].projection != scope["sketcher"].projection
