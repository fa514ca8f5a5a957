"""Scoring over the wire: what is answered and what is remembered."""

import json
from concurrent.futures import ThreadPoolExecutor, wait

import httpx
import msgpack
import numpy as np
import pytest

from gradalign import Client, Projection, Ranking, RefreshReply, ScoreRequest, SketchMatrix
from gradalign.wire.codec import encode_request

MSGPACK = {"Content-Type": "application/msgpack"}


@pytest.fixture
def client(scorer, run_id):
    with Client(scorer.url, run_id=run_id, retries=0) as client:
        yield client


@pytest.fixture
def run(client, problem_ids, sketches, projection):
    """A run with a validation gradient at policy version 1."""
    client.refresh_validation(problem_ids, sketches, policy_version=1, projection=projection, aggregation="mean")
    return client


def exact(sketches):
    """Cosines with the mean of the rows, in float64."""
    rows = sketches.astype(np.float64)
    mean = rows.mean(axis=0)
    return rows @ mean / np.linalg.norm(rows, axis=1) / np.linalg.norm(mean)


def test_a_ranking_is_the_cosines_best_first(run, problem_ids, sketches, projection):
    ranking = run.score(problem_ids, sketches, policy_version=2, projection=projection, select=3)
    cosines = dict(zip(problem_ids, exact(sketches), strict=True))
    assert ranking.problem_ids == sorted(problem_ids, key=lambda i: -cosines[i])
    assert ranking.alignments == pytest.approx([cosines[i] for i in ranking.problem_ids], abs=1e-5)
    assert ranking.priorities == ranking.alignments
    assert ranking.selected == ranking.problem_ids[:3]
    assert (ranking.validation_version, ranking.validation_policy_version) == (1, 1)
    assert ranking.strategy == "cosine"
    norms = dict(zip(problem_ids, np.linalg.norm(sketches.astype(float), axis=1), strict=True))
    assert ranking.norms == pytest.approx([norms[i] for i in ranking.problem_ids], rel=1e-5)
    assert all(0 <= weight <= 1 for weight in ranking.weights)
    assert ranking.rejected == []
    assert ranking.no_signal == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_every_dtype_gives_the_ranking(run, problem_ids, sketches, projection, dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(sketches)
    rows = SketchMatrix.of(tensor, dtype) if dtype == "int8" else tensor.to(getattr(torch, dtype))
    ranking = run.score(problem_ids, rows, policy_version=2, projection=projection)
    tolerance = 1e-2 if dtype in ("bfloat16", "int8") else 1e-5
    by_id = dict(zip(ranking.problem_ids, ranking.alignments, strict=True))
    assert [by_id[i] for i in problem_ids] == pytest.approx(exact(sketches), abs=tolerance)


def test_a_row_with_nan_is_rejected_and_the_rest_scored(run, problem_ids, sketches, projection):
    sketches = sketches.copy()
    sketches[2, 5], sketches[4, 0] = np.nan, -np.inf
    ranking = run.score(problem_ids, sketches, policy_version=2, projection=projection, select=8)
    assert [row.problem_id for row in ranking.rejected] == ["p2", "p4"]
    assert all("NaN" in row.reason for row in ranking.rejected)
    assert sorted(ranking.problem_ids) == sorted(set(problem_ids) - {"p2", "p4"}) == sorted(ranking.selected)
    assert {row.problem_id for row in run.problems().problems} == set(ranking.problem_ids)


def test_rejected_validation_rows_are_named_and_left_out(client, problem_ids, sketches, projection):
    with_nan = sketches.copy()
    with_nan[3] = np.nan
    reply = client.refresh_validation(
        problem_ids, with_nan, policy_version=1, projection=projection, aggregation="mean"
    )
    assert [row.problem_id for row in reply.rejected] == ["p3"]
    assert reply.problems == 7
    rest = np.delete(sketches.astype(np.float64), 3, axis=0).mean(axis=0)
    ranking = client.score(["v"], rest[None], policy_version=1, projection=projection)
    assert ranking.alignments == pytest.approx([1.0], abs=1e-5)


def test_a_zero_row_has_alignment_0_and_no_signal(run, problem_ids, sketches, projection):
    sketches = sketches.copy()
    sketches[6] = 0
    sketches[7] = -sketches.mean(axis=0)
    ranking = run.score(problem_ids, sketches, policy_version=2, projection=projection)
    assert ranking.no_signal == ["p6"]
    place = ranking.problem_ids.index("p6")
    assert ranking.alignments[place] == 0.0
    assert ranking.weights[place] == 0.0
    assert place < ranking.problem_ids.index("p7")


def test_exact_dots_and_norms_replace_the_sketch(run, problem_ids, sketches, projection):
    norms, dots = [2.0] * 8, [x / 4 for x in range(8)]
    ranking = run.score(
        problem_ids, sketches, policy_version=2, projection=projection, norms=norms, dots=dots, dots_version=1
    )
    assert ranking.problem_ids == problem_ids[::-1]
    assert ranking.alignments == [x / 8 for x in range(7, -1, -1)]
    assert ranking.reliability == 1.0
    assert ranking.norms == norms


def test_a_problem_too_small_for_its_sketch_has_its_exact_alignment(run, problem_ids, sketches, projection):
    sketches = sketches.copy()
    sketches[0] = 0
    norms, dots = [1e-9] + [1.0] * 7, [0.9e-9] + [0.1] * 7
    ranking = run.score(
        problem_ids, sketches, policy_version=2, projection=projection, norms=norms, dots=dots, dots_version=1
    )
    assert ranking.problem_ids[0] == "p0"
    assert ranking.no_signal == []


@pytest.mark.parametrize("strategy", ["norm", "learnalign", "accgreedy", "accuracy_band", "random"])
def test_strategies_without_validation_begin_a_run(client, problem_ids, sketches, projection, strategy):
    rates = [x / 8 for x in range(8)]
    ranking = client.score(
        problem_ids, sketches, policy_version=0, projection=projection, strategy=strategy, pass_rates=rates
    )
    assert (ranking.strategy, ranking.alignments, ranking.validation_version) == (strategy, None, None)
    assert ranking.weights == [1.0] * 8
    assert client.run().problems == 8
    assert client.run().strategy == strategy


def test_the_last_named_strategy_is_the_default(run, problem_ids, sketches, projection):
    assert run.score(problem_ids, sketches, policy_version=1, projection=projection).strategy == "cosine"
    assert run.score(problem_ids, sketches, policy_version=1, projection=projection, strategy="dot").strategy == "dot"
    assert run.score(problem_ids, sketches, policy_version=1, projection=projection).strategy == "dot"


def test_a_repeated_request_is_applied_once(run, problem_ids, sketches, projection):
    fields = {"policy_version": 2, "projection": projection, "request_id": "once", "select": 2}
    first = run.score(problem_ids, sketches, **fields)
    run.refresh_validation(problem_ids, -sketches, policy_version=3, projection=projection)
    assert run.score(problem_ids, sketches, **fields) == first
    assert run.problem(first.selected[0]).times_scored == 1
    assert run.problem(first.selected[0]).times_selected == 1
    refreshed = run.refresh_validation(
        problem_ids, sketches, policy_version=3, projection=projection, request_id="again"
    )
    assert refreshed == run.refresh_validation(
        problem_ids, sketches, policy_version=3, projection=projection, request_id="again"
    )
    assert run.run().validation_version == refreshed.validation_version == 3
    picked = run.select(2, policy_version=3, request_id="pick")
    assert run.select(2, policy_version=3, request_id="pick") == picked


def test_without_a_request_id_a_repeated_request_is_applied_again(scorer, run, problem_ids, sketches, projection):
    request = ScoreRequest(
        run_id=run.run_id,
        policy_version=2,
        projection=projection,
        problem_ids=problem_ids,
        sketches=SketchMatrix.of(sketches),
    )
    body = b"".join(encode_request(request))
    for _ in range(2):
        assert httpx.post(f"{scorer.url}/score", content=body, headers=MSGPACK).status_code == 200
    assert run.problem("p0").times_scored == 2


def test_remembered_evidence_moves_the_weights(run, problem_ids, sketches, projection):
    good, bad = exact(sketches)[None].T * sketches, -sketches
    mean = sketches.mean(axis=0, dtype=np.float64)
    rows = np.stack([mean, *good[1:]]).astype(np.float32)
    for version in (1, 2, 3):
        before = run.score(problem_ids, rows, policy_version=version, projection=projection)
    assert before.weight_of()["p0"] == 1.0
    turned = np.stack([-mean * 0.1, *bad[1:]]).astype(np.float32)
    after = run.score(problem_ids, turned, policy_version=4, projection=projection)
    fresh = run.score(["new", *problem_ids[1:]], turned, policy_version=4, projection=projection)
    assert after.weight_of()["p0"] > fresh.weight_of()["new"] == 0.0


def test_json_and_msgpack_say_the_same(scorer, run, problem_ids, sketches, projection):
    header = {
        "run_id": run.run_id,
        "policy_version": 2,
        "projection": projection.to_map(),
        "problem_ids": problem_ids,
        "select": 2,
    }
    packed = msgpack.packb({**header, "dtype": "float16"}) + msgpack.packb(sketches.tobytes())
    as_json = json.dumps({**header, "sketches": sketches.astype(float).tolist()})
    with scorer.http() as http:
        a = http.post("/score", content=packed, headers={**MSGPACK, "Accept": "application/msgpack"})
        b = http.post("/v1/score", content=as_json, headers={"Content-Type": "application/json"})
    assert (a.headers["Content-Type"], b.headers["Content-Type"]) == ("application/msgpack", "application/json")
    one, other = msgpack.unpackb(a.content), b.json()
    # Remembered evidence moves the weights of the second; all else is the same.
    assert one.pop("weights") != []
    assert other.pop("weights") != []
    assert one == other
    assert set(Ranking.__dataclass_fields__) == {*one, "weights"}


def test_misaligned_sketches_are_read_right(scorer, run, problem_ids, sketches, projection):
    rows = sketches.astype(np.float32)
    wanted = run.score(problem_ids, rows, policy_version=1, projection=projection).alignments
    with scorer.http() as http:
        for padding in range(4):
            header = {
                "run_id": run.run_id,
                "policy_version": 1,
                "projection": projection.to_map(),
                "problem_ids": problem_ids,
                "dtype": "float32",
                "request_id": "x" * (padding + 1),
            }
            body = msgpack.packb(header) + msgpack.packb(rows.tobytes())
            assert http.post("/score", content=body, headers=MSGPACK).json()["alignments"] == wanted


def test_a_request_of_the_largest_pool(run, projection):
    rng = np.random.default_rng(1)
    ids = [f"problem {i}/ü" for i in range(4096)]
    rows = rng.standard_normal((4096, 32)).astype(np.float16)
    ranking = run.score(ids, rows, policy_version=1, projection=projection, select=100)
    assert len(ranking.problem_ids) == 4096
    assert len(run.select(100, policy_version=1, exploration=0.0, cooldown=0).selected) == 100
    assert run.run().problems == 4096


@pytest.mark.parametrize("dim", [1, 1000, 131_072])
def test_other_dims(client, dim):
    projection = Projection(dim=dim, seed=0, parameters="cd" * 32)
    rows = np.random.default_rng(2).standard_normal((5, dim)).astype(np.float16)
    ids = list("abcde")
    reply = client.refresh_validation(ids, rows, policy_version=0, projection=projection)
    assert isinstance(reply, RefreshReply)
    ranking = client.score(ids, rows, policy_version=0, projection=projection)
    wanted = dict(zip(ids, exact(rows), strict=True))
    assert ranking.alignments == pytest.approx([wanted[i] for i in ranking.problem_ids], abs=1e-4)


def passes(scorer):
    """How many passes over small requests there were, and over how many requests."""
    with scorer.http() as http:
        lines = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines() if not line.startswith("#"))
    return [float(lines[f"gradalign_score_batch_requests_{part}"]) for part in ("count", "sum")]


def test_small_requests_that_wait_share_a_pass_and_each_has_its_own_ranking(
    run, scorer, problem_ids, sketches, projection
):
    alone = run.score(problem_ids, sketches, policy_version=2, projection=projection)
    before = passes(scorer)
    crowd = [f"busy-{i}" for i in range(1500)]
    rows = np.random.default_rng(0).standard_normal((1500, sketches.shape[1])).astype(np.float16)
    with ThreadPoolExecutor(13) as threads:
        slow = threads.submit(run.score, crowd, rows, policy_version=2, projection=projection, strategy="diverse")
        jobs = []
        while not slow.done():
            jobs += [
                threads.submit(run.score, problem_ids, sketches, policy_version=2, projection=projection)
                for _ in range(12)
            ]
            wait(jobs)
    for job in jobs:
        assert job.result().problem_ids == alone.problem_ids
        assert job.result().alignments == alone.alignments
    turns, requests = (now - then for now, then in zip(passes(scorer), before, strict=True))
    assert requests == len(jobs) + 1
    assert turns < requests
