"""Writes `codec.json`: requests as a header map, their sketches, and the bytes they must become on the wire.

    python proto/vectors/make_codec.py

Floats of the sketches are exact in their dtype, so any implementation must reproduce the bytes of the bin, and read the
header back as it stands here. A request with products, or pass rates alone, has no bin (`bin_hex` is null), and may end with
an empty one. Map keys may come in any order; `body` has them in ours.

`quantised` shows float32 rows as int8. Another implementation's scales may differ in their last bit, and its numbers by one
where a quotient is so close to a half.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradalign import Projection, RefreshRequest, ScoreRequest, SelectRequest, SketchMatrix, parameters_digest
from gradalign.wire.codec import MSGPACK, encode_request, encode_value

SHAPES = {"embed.weight": (7, 4), "layers.0.weight": (4, 4), "layers.0.bias": (4,)}
PROJECTION = Projection(dim=4, seed=17, parameters=parameters_digest(SHAPES))
ROWS = [[0.5, -1.25, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-3.0, 1.5, 0.25, -0.125]]
WHOLE, SCALES = [[16, -40, 0, 64], [0, 0, 0, 0], [-24, 12, 2, -1]], (0.03125, 0.0, 0.125)
"""They stand for ROWS exactly. A client would rather take 127ths of the largest number of each row, as QUANTISED does."""
QUANTISED = [
    [127.0, 0.5, 1.5, -2.5],
    [0.5, -1.25, 0.0, 2.0],
    [0.0, 0.0, 0.0, 0.0],
    [-3.0, 1.5, 0.25, -0.125],
    [1e-44, -3e-45, 0.0, 1e-45],
    [3.4028234663852886e38, 1e38, -1e36, 1e30],
]
COMMON: dict[str, Any] = {
    "run_id": "golden",
    "projection": PROJECTION,
    "problem_ids": ["math/1", "zero", "Größe-3"],
}


def requests() -> dict[str, ScoreRequest | RefreshRequest]:
    """The requests by name."""
    half = SketchMatrix.of(np.array(ROWS, dtype=np.float16))
    brain = SketchMatrix.of(torch.tensor(ROWS, dtype=torch.bfloat16))
    single = SketchMatrix.of(np.array(ROWS, dtype=np.float32))
    whole = SketchMatrix(memoryview(np.array(WHOLE, dtype=np.int8)).cast("B"), 3, 4, "int8", SCALES)
    columns: dict[str, Any] = {"norms": [2.5, 0.0, 3.5], "rollouts": [8, 8, 8], "tokens": [90, 64, 1200]}
    exact: dict[str, Any] = {"dots": [0.5, 0.0, -0.25], "dots_version": 3, "pass_rates": [0.5, 1.0, 0.125]}
    rows: dict[str, Any] = {"run_id": "golden", "problem_ids": COMMON["problem_ids"], "policy_version": 12}
    products: dict[str, Any] = {"products": [[0.5, -1.25, 0.0], [0.0], [-3.0, 1.5]]}
    choice: dict[str, Any] = {"strategy": "cosine", "select": 2, "request_id": "0123abcd", "epoch": 2}
    return {
        "score_minimal_float32": ScoreRequest(**COMMON, policy_version=0, sketches=single),
        "score_every_key_float16": ScoreRequest(
            **COMMON, policy_version=12, sketches=half, **columns, **exact, **choice
        ),
        "score_int8": ScoreRequest(**COMMON, policy_version=12, sketches=whole),
        "refresh_int8": RefreshRequest(**COMMON, policy_version=12, sketches=whole, tokens=[90, 64, 1200]),
        "score_features": ScoreRequest(
            **COMMON, policy_version=12, sketches=half, features=[[0.5, -1.0], [0.0, 2.0], [-0.25, 1.5]]
        ),
        "refresh_decay": RefreshRequest(
            **COMMON, policy_version=12, sketches=half, tokens=[90, 64, 1200], decay=0.75, decay_version=3
        ),
        "refresh_bfloat16": RefreshRequest(
            **COMMON, policy_version=12, sketches=brain, tokens=[90, 64, 1200], aggregation="pooled", request_id="r-1"
        ),
        "refresh_products": RefreshRequest(**rows, products=[[0.5, 0.25, 0.0], [0.0], [1.0, 0.25]], lengths=2.0),
        "score_products_minimal": ScoreRequest(**rows, **products, products_version=3),
        "score_products_every_key": ScoreRequest(
            **rows,
            **products,
            **columns,
            products_version=3,
            norms_kind="head",
            pass_rates=[0.5, 1.0, 0.125],
            rollout_weights=True,
            shrink_weights=True,
            **{**choice, "strategy": "shrunken"},
        ),
        "score_pass_rates_minimal": ScoreRequest(**rows, pass_rates=[0.5, 1.0, 0.125], rollouts=[8, 8, 8]),
        "score_pass_rates_every_key": ScoreRequest(
            **rows,
            pass_rates=[0.5, 1.0, 0.125],
            rollouts=[8, 4, 16],
            tokens=[90, 64, 1200],
            discount=0.75,
            **{**choice, "strategy": "posterior"},
        ),
        "score_discount_float16": ScoreRequest(
            **COMMON, policy_version=12, sketches=half, pass_rates=[0.5, 1.0, 0.125], rollouts=[8, 8, 8], discount=1.0
        ),
    }


def selects() -> dict[str, SelectRequest]:
    """Requests to `/select` by name; in msgpack as well as in JSON one map."""
    return {
        "select_minimal": SelectRequest(run_id="golden", policy_version=12, count=2),
        "select_posterior": SelectRequest(
            run_id="golden",
            policy_version=12,
            count=2,
            problem_ids=COMMON["problem_ids"],
            strategy="posterior",
            half_life=32.0,
            exploration=0.0,
            cooldown=0,
            seed=7,
            request_id="0123abcd",
            epoch=2,
        ),
    }


def quantised() -> dict[str, Any]:
    """Rows of float32, and the scales and whole numbers that they become."""
    rows = np.array(QUANTISED, dtype=np.float32)
    matrix = SketchMatrix.of(rows, "int8")
    assert matrix.scales is not None
    whole = np.frombuffer(matrix.data, dtype=np.int8).reshape(rows.shape)
    return {"rows": rows.tolist(), "scales": list(matrix.scales), "int8": whole.tolist()}


def vectors() -> dict[str, Any]:
    """The content of `codec.json`."""
    return {
        "projection": {"shapes": SHAPES, "map": PROJECTION.to_map()},
        "rows": ROWS,
        "quantised": quantised(),
        "requests": {
            name: {
                "path": "/score" if isinstance(request, ScoreRequest) else "/refresh_validation",
                "header": request.header(),
                "bin_hex": None if request.sketches is None else bytes(request.sketches.data).hex(),
                "body_hex": b"".join(encode_request(request)).hex(),
            }
            for name, request in requests().items()
        },
        "selects": {
            name: {"header": request.header(), "body_hex": encode_value(request.header(), MSGPACK).hex()}
            for name, request in selects().items()
        },
    }


if __name__ == "__main__":
    text = json.dumps(vectors(), indent=2, ensure_ascii=False) + "\n"
    Path(__file__).with_name("codec.json").write_text(text, encoding="utf-8")
