"""Writes `sketch.json`: gradients by parameter name, and the hashes and sketches they must give.

    python proto/vectors/make_sketch.py

Everything comes from the numpy reference, `gradalign.wire.countsketch`. The gradients are small multiples of 1/8, so that
every sum is exact in float32 and any implementation must give these very numbers. Keys are decimal strings: they do not
fit the integers of every JSON reader.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gradalign import Projection, parameters_digest
from gradalign.wire.countsketch import Side, axis_hashes, axis_key, matrix_shape, sketch_gradients, sketch_matrix

CASES: list[dict[str, Any]] = [
    {"dim": 8, "seed": 0, "shapes": {"weight": (3, 4), "bias": (3,)}},
    {"dim": 7, "seed": 17, "shapes": {"experts.down_proj": (2, 3, 2), "norm.weight": (5,), "scale": ()}},
    {"dim": 64, "seed": 2**40, "shapes": {"model.layers.0.mlp.up_proj.weight": (6, 5), "Größe": (2, 2)}},
]
SIDES: tuple[Side, Side] = ("row", "col")


def axes(name: str, shape: tuple[int, ...], *, dim: int, seed: int) -> dict[str, Any]:
    """Key, buckets and signs of both axes of one parameter."""
    found = {}
    for side, count in zip(SIDES, matrix_shape(shape), strict=True):
        buckets, signs = axis_hashes(seed, name, side, count, dim)
        key = str(axis_key(seed, name, side))
        found[side] = {"key": key, "buckets": buckets.tolist(), "signs": signs.tolist()}
    return found


def case(rng: np.random.Generator, *, dim: int, seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """One projection with the gradients of a problem."""
    gradients = {name: rng.integers(-16, 17, shape) / 8.0 for name, shape in shapes.items()}
    return {
        "projection": Projection(dim=dim, seed=seed, parameters=parameters_digest(shapes)).to_map(),
        "parameters": {
            name: {
                "shape": list(shape),
                "matrix_shape": list(matrix_shape(shape)),
                **axes(name, shape, dim=dim, seed=seed),
                "gradient": np.asarray(gradients[name]).ravel().tolist(),
                "sketch": sketch_matrix(np.asarray(gradients[name]), name, dim=dim, seed=seed).tolist(),
            }
            for name, shape in shapes.items()
        },
        "sketch": sketch_gradients({n: np.asarray(g) for n, g in gradients.items()}, dim=dim, seed=seed).tolist(),
    }


def vectors() -> dict[str, Any]:
    """The content of `sketch.json`."""
    rng = np.random.default_rng(5)
    return {"layout": 1, "cases": [case(rng, **made) for made in CASES]}


if __name__ == "__main__":
    text = json.dumps(vectors(), ensure_ascii=False, indent=1) + "\n"
    Path(__file__).with_name("sketch.json").write_text(text, encoding="utf-8")
