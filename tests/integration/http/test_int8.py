"""Sketches of int8 over the wire, to a scorer that is a process of its own: one ranking, whatever they travel as."""

import asyncio
import json

import numpy as np
import pytest
import torch

from gradalign import AsyncClient, Client, Projection, RefreshRequest, ScoreRequest, SketchMatrix
from gradalign.wire.codec import encode_request
from gradalign.wire.messages import SKETCH_STRATEGIES

MSGPACK = {"Content-Type": "application/msgpack"}
RATES = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0]
# A float64 sum of rows and one of float32 differ by so much of an alignment.
ROUNDING = 1e-5


@pytest.fixture
def clients(scorer, run_id):
    """Two runs, of int8 and of the floats that these stand for."""
    with (
        Client(scorer.url, run_id=run_id, retries=0, sketch_dtype="int8") as int8,
        Client(scorer.url, run_id=f"{run_id}-floats", retries=0) as floats,
    ):
        yield int8, floats


@pytest.fixture
def rows(sketches):
    """Rows that int8 carries exactly, float32 [8, 32]: of one factor each."""
    return SketchMatrix.of(sketches, "int8").numpy()


def columns(ranking):
    return {name: getattr(ranking, name) for name in ("priorities", "alignments", "norms", "weights")}


@pytest.mark.parametrize("aggregation", ["pooled", "mean", "normalized"])
@pytest.mark.parametrize("strategy", sorted(set(SKETCH_STRATEGIES) - {"random", "accuracy_band"}))
def test_every_strategy_ranks_int8_as_the_floats_it_stands_for(
    clients, problem_ids, rows, projection, strategy, aggregation
):
    rankings = []
    for client in clients:
        reply = client.refresh_validation(
            problem_ids[:5],
            rows[:5],
            policy_version=1,
            projection=projection,
            aggregation=aggregation,
            tokens=[1, 2, 3, 4, 5],
        )
        assert (reply.validation_version, reply.problems) == (1, 5)
        common = {"policy_version": 1, "projection": projection, "pass_rates": RATES, "rollouts": [8] * len(RATES)}
        common |= {"select": 3, "strategy": strategy}
        rankings.append(client.score(problem_ids, rows, **common))
    int8, floats = rankings
    assert (int8.problem_ids, int8.selected) == (floats.problem_ids, floats.selected)
    for name, values in columns(int8).items():
        assert values == pytest.approx(columns(floats)[name], rel=1e-4, abs=ROUNDING), name


def test_of_a_tensor_and_by_an_asynchronous_client(scorer, run_id, problem_ids, rows, projection):
    tensor = torch.from_numpy(rows).bfloat16()

    async def ranked():
        async with AsyncClient(scorer.url, run_id=run_id, sketch_dtype="int8") as client:
            await client.refresh_validation(problem_ids, tensor, policy_version=1, projection=projection)
            return await client.score(problem_ids, tensor, policy_version=1, projection=projection)

    ranking = asyncio.run(ranked())
    with Client(scorer.url, run_id=f"{run_id}-2") as client:
        client.refresh_validation(problem_ids, tensor.float(), policy_version=1, projection=projection)
        wanted = client.score(problem_ids, tensor.float(), policy_version=1, projection=projection)
    by_id = dict(zip(ranking.problem_ids, ranking.alignments, strict=True))
    assert [by_id[i] for i in wanted.problem_ids] == pytest.approx(wanted.alignments, abs=2e-2)


def test_a_row_with_nan_is_rejected_by_name_and_the_rest_scored(clients, problem_ids, rows, projection):
    client, _ = clients
    broken = rows.copy()
    broken[2, 5], broken[6] = np.nan, 0
    reply = client.refresh_validation(problem_ids, broken, policy_version=1, projection=projection)
    assert [row.problem_id for row in reply.rejected] == ["p2"]
    ranking = client.score(problem_ids, broken, policy_version=1, projection=projection)
    assert [row.problem_id for row in ranking.rejected] == ["p2"]
    assert "-128 where it is int8" in ranking.rejected[0].reason
    assert ranking.no_signal == ["p6"]
    assert len(ranking.problem_ids) == 7


def test_json_and_msgpack_say_the_same(scorer, run_id, problem_ids, rows, projection):
    matrix = SketchMatrix.of(rows, "int8")
    whole = np.frombuffer(matrix.data, np.int8).reshape(rows.shape).tolist()
    fields = {"projection": projection, "problem_ids": problem_ids, "sketches": matrix, "policy_version": 1}
    replies = []
    with scorer.http() as http:
        for run, as_json in ((f"{run_id}-m", False), (f"{run_id}-j", True)):
            for path, kind in (("/refresh_validation", RefreshRequest), ("/score", ScoreRequest)):
                request = kind(run_id=run, **fields)
                packed = b"".join(bytes(part) for part in encode_request(request))
                text = json.dumps({**request.header(), "sketches": whole})
                headers = {"Content-Type": "application/json"} if as_json else MSGPACK
                reply = http.post(path, content=text if as_json else packed, headers=headers)
                assert reply.status_code == 200, reply.text
            replies.append({**reply.json(), "run_id": None})
    assert replies[0] == replies[1]


def test_a_run_may_mix_dtypes_and_goes_on_from_a_snapshot(clients, problem_ids, rows, projection):
    int8, floats = clients
    same_run = Client(floats.base_url, run_id=int8.run_id, retries=0)
    with same_run:
        same_run.refresh_validation(problem_ids, rows, policy_version=1, projection=projection)
        one = same_run.score(problem_ids, rows, policy_version=1, projection=projection)
        int8.snapshot("before")
        other = int8.score(problem_ids, rows, policy_version=2, projection=projection)
        assert other.alignments == pytest.approx(one.alignments, abs=ROUNDING)
        int8.restore("before")
        again = int8.score(problem_ids, rows, policy_version=2, projection=projection)
        assert columns(again) == columns(other)


def test_a_large_request_is_scored_as_it_arrives_and_again_under_its_id(scorer, run_id):
    """More than the 8 MiB that are scored at a time."""
    rng = np.random.default_rng(0)
    projection = Projection(dim=4096, seed=0, parameters="cd" * 32)
    ids = [f"problem-{i}" for i in range(4000)]
    rows = (rng.standard_normal((4000, 1)) * rng.standard_normal((4000, 4096))).astype(np.float32)
    rows[3000, 17] = np.inf
    with Client(scorer.url, run_id=run_id, sketch_dtype="int8") as client:
        client.refresh_validation(ids[:32], rows[:32], policy_version=0, projection=projection, aggregation="mean")
        first = client.score(ids, rows, policy_version=0, projection=projection, request_id="once")
        again = client.score(ids, rows, policy_version=0, projection=projection, request_id="once")
    assert first == again
    assert [row.problem_id for row in first.rejected] == ["problem-3000"]
    target = rows[:32].astype(float).mean(axis=0)
    with np.errstate(invalid="ignore"):
        exact = rows.astype(float) @ target / np.linalg.norm(rows.astype(float), axis=1) / np.linalg.norm(target)
    wanted = dict(zip(ids, exact, strict=True))
    found = np.array([wanted[i] for i in first.problem_ids])
    # The largest of 4,096 numbers is four times the usual one: half of a 127th of it is a hundredth of that.
    assert first.alignments == pytest.approx(found, abs=5e-3)
