"""What docs/at-scale.md computes of requests is what the client would send."""

import costs
import numpy as np
import pytest

from gradalign import Projection
from gradalign.wire.codec import encode_request
from gradalign.wire.matrix import SketchMatrix
from gradalign.wire.messages import ScoreRequest


def rows_of(job, kind):
    random = np.random.default_rng(0)
    if kind == "products":
        return {"products": random.normal(size=(job.problems, job.rollouts)).tolist(), "products_version": 7}
    values = random.normal(size=(job.problems, job.dim)).astype(np.float16 if kind == "float16" else np.float32)
    matrix = SketchMatrix.of(values, None if kind == "float16" else kind)
    return {"sketches": matrix, "projection": Projection(dim=job.dim, seed=0, parameters="ab" * 32)}


@pytest.mark.parametrize("kind", ["products", "float32", "float16", "int8"])
@pytest.mark.parametrize("job", [costs.Job(), costs.Job(problems=512, dim=1024)])
def test_a_score(job, kind):
    common = {
        "run_id": "countdown-7b-2", "policy_version": 300, "request_id": "a" * 36, "epoch": 3, "strategy": "cosine",
        "problem_ids": [f"sha256-{i:024x}" for i in range(job.problems)],
        "tokens": [job.rollouts * job.tokens] * job.problems, "rollouts": [job.rollouts] * job.problems,
        "pass_rates": [0.3] * job.problems,
    }  # fmt: skip
    parts = encode_request(ScoreRequest(**common, **rows_of(job, kind)))
    assert sum(memoryview(part).nbytes for part in parts) == pytest.approx(costs.wire_bytes(job, kind), rel=0.01)
