"""What tests of training runs look at."""

import torch
from safetensors.torch import load_file

from gradalign import Client

ALIGNMENTS = ("capture", "exact", "forward")


def problems_of(url, run_id):
    with Client(url, run_id=run_id) as client:
        return {row.problem_id: row for row in client.problems(limit=1000).problems}


def weights(result):
    return load_file(result.checkpoint / "model.safetensors")


def assert_same_weights(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def begins_with_nine(problem, completion):
    """A reward that a model which knows nothing earns now and then, and can learn to earn."""
    return float(completion.startswith("9"))
