"""What docs/at-scale.md computes of capture is what torch counts on a small model: operations, and memory."""

from dataclasses import replace

import costs
import pytest
import torch
from costkit import JOB, build, flops, ids_of, logprobs_of
from tensorbytes import peak_bytes

from gradalign.sketch import Sketcher
from gradalign.sketch.capture.accumulate import Accumulator
from gradalign.sketch.capture.rows.problems import Groups

# Per-problem gradients are formed, as at scale: with few tokens their factors would be sketched instead.
MANY = replace(JOB, problems=2, rollouts=4, tokens=48, dim=2048)


def captured(job, model, sketcher):
    index = torch.arange(job.problems).repeat_interleave(job.rollouts)
    with sketcher.capture(index, keep_grad=False):
        logprobs_of(model, job.problems * job.rollouts)(ids_of(job)).sum().backward()


def test_a_forward_and_backward_forms_the_gradients_of_all_problems():
    model = build()
    assert flops(lambda: captured(MANY, model, Sketcher(model, dim=MANY.dim))) == costs.update_flops(MANY)


def test_of_the_head_alone_the_backward_ends_at_its_input():
    model = build()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("lm_head"))
    assert flops(lambda: captured(MANY, model, Sketcher(model, dim=MANY.dim))) == costs.head_alone_flops(MANY)


@pytest.mark.parametrize("problems", [1, 4])
def test_memory_is_that_of_the_factors_in_float32(problems):
    job = replace(JOB, problems=problems, at_once=8, tokens=64)
    model = build()
    matrices = list(costs.shapes_of(job))
    rows, cols = max(matrices, key=sum)
    tokens = job.at_once * job.tokens
    left, right = (torch.randn(tokens, width).bfloat16() for width in (rows, cols))
    groups = Groups.even(problems, tokens // problems, left.device)
    sketcher = Sketcher(model, dim=job.dim)

    def add():
        target = Accumulator(
            problems, job.dim, dtype=torch.float32, device=left.device,
            table=lambda name: sketcher.table(name, left.device),
        )  # fmt: skip
        target.outer(("lm_head.weight", 0, rows), left, right, groups, total=False)

    assert tuple(sketcher.shapes["lm_head.weight"]) == (rows, cols)
    add()  # numba compiles
    assert peak_bytes(add) == pytest.approx(costs.sketching(job, matrices), rel=0.1)


def test_hashes_are_a_bucket_and_a_sign_for_each_row_and_column():
    model = build()
    sketcher = Sketcher(model, dim=JOB.dim)
    tables = [sketcher.table(name, torch.device("cpu")) for name, shape in sketcher.shapes.items() if len(shape) == 2]
    axes = [axis for table in tables for axis in (table.rows, table.cols)]
    assert sum(axis.buckets.nbytes + axis.signs.nbytes for axis in axes) == costs.hashes(list(costs.shapes_of(JOB)))
