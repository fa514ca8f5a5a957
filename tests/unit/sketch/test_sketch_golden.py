"""The golden sketches of `proto/vectors/sketch.json`: the reference and the torch path must both give them."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradalign import Projection, parameters_digest
from gradalign.sketch import Sketcher
from gradalign.wire.countsketch import axis_hashes, axis_key, matrix_shape, sketch_matrix

VECTORS = Path(__file__).parents[3] / "proto/vectors"
CASES = json.loads((VECTORS / "sketch.json").read_text(encoding="utf-8"))["cases"]
PARAMETERS = [(case, name) for case in range(len(CASES)) for name in CASES[case]["parameters"]]


def gradient(parameter):
    return np.array(parameter["gradient"]).reshape(parameter["shape"])


@pytest.mark.parametrize(("case", "name"), PARAMETERS)
def test_reference_gives_the_golden_hashes_and_sketch(case, name):
    projection, parameter = CASES[case]["projection"], CASES[case]["parameters"][name]
    dim, seed = projection["dim"], projection["seed"]
    assert list(matrix_shape(tuple(parameter["shape"]))) == parameter["matrix_shape"]
    for side, count in zip(("row", "col"), parameter["matrix_shape"], strict=True):
        buckets, signs = axis_hashes(seed, name, side, count, dim)
        found = {"key": str(axis_key(seed, name, side)), "buckets": buckets.tolist(), "signs": signs.tolist()}
        assert found == parameter[side]
    assert sketch_matrix(gradient(parameter), name, dim=dim, seed=seed).tolist() == parameter["sketch"]


def nested(parameters):
    """A model whose parameters have these dotted names and the golden gradients."""
    model = nn.Module()
    for name, parameter in parameters.items():
        *path, leaf = name.split(".")
        owner = model
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        weight = nn.Parameter(torch.zeros(parameter["shape"]))
        weight.grad = torch.tensor(gradient(parameter), dtype=torch.float32)
        owner.register_parameter(leaf, weight)
    return model


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["projection"]["id"])
def test_sketcher_gives_the_golden_sketch(case):
    projection = Projection.from_map(case["projection"])
    shapes = {name: parameter["shape"] for name, parameter in case["parameters"].items()}
    sketcher = Sketcher(nested(case["parameters"]), dim=projection.dim, seed=projection.seed)
    assert parameters_digest(shapes) == projection.parameters
    assert sketcher.projection == projection
    assert sketcher.from_grads().tolist() == case["sketch"]


def test_the_script_writes_the_file_that_is_committed():
    made = runpy.run_path(str(VECTORS / "make_sketch.py"))["vectors"]()
    assert made["cases"] == CASES
