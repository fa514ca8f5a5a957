"""The laws of a ranking: independent of order and of cutting, true to signs and scales, the same for the same request."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ranking_kit import CPU, by_id, rank, request_of, unit

from gradalign.wire.messages import SKETCH_STRATEGIES
from gradalign_scorer.ranking.scoring import Evidence, score
from gradalign_scorer.service.outcomes import score_commit

DTYPES = ("float16", "bfloat16", "float32", "int8")
# Each of these ranks a problem by its own row alone; the others look at the whole request.
ROW_BY_ROW = (
    "cosine",
    "dot",
    "anti",
    "norm",
    "accgreedy",
    "cosine_accuracy",
    "random",
    "accuracy_band",
    "posterior",
)
IDS = st.lists(st.text("abcXYZ019/é ", min_size=1, max_size=3), min_size=1, max_size=24, unique=True)
quick = settings(max_examples=40, deadline=None)


@st.composite
def pools(draw, rows=(1, 24)):
    """Requests with zero rows, duplicates and opposites; small whole numbers, which every float carries exactly."""
    ids = draw(IDS.filter(lambda ids: rows[0] <= len(ids) <= rows[1]))
    dim = draw(st.integers(1, 9))
    whole = st.integers(-8, 8).map(float)
    return {
        "sketches": draw(arrays(np.float64, (len(ids), dim), elements=whole)),
        "ids": ids,
        "dtype": draw(st.sampled_from(DTYPES)),
        "pass_rates": draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=len(ids), max_size=len(ids))),
        "rollouts": draw(st.lists(st.sampled_from([4, 8]), min_size=len(ids), max_size=len(ids))),
        "validation": unit(draw(arrays(np.float64, dim, elements=whole).filter(np.any))),
        "policy_version": draw(st.integers(0, 3)),
    }


def part(pool, places):
    """Some rows of a pool, in the order given."""
    chosen = {"sketches": pool["sketches"][places]}
    for column in ("ids", "pass_rates", "rollouts"):
        chosen[column] = [pool[column][i] for i in places]
    return {**pool, **chosen}


def ranked(pool, strategy, **changes):
    given = {**pool, **changes}
    return rank(given.pop("sketches"), strategy, **given)


def continuous(seed, count=14, dim=40):
    """A pool without ties, for the strategies whose sums round differently in another order."""
    rng = np.random.default_rng(seed)
    return {
        "sketches": rng.standard_normal((count, dim)) * rng.lognormal(0, 1, (count, 1)),
        "ids": [f"p{i}" for i in range(count)],
        "pass_rates": rng.uniform(0, 1, count).tolist(),
        "rollouts": [8] * count,
        "validation": unit(rng.standard_normal(dim)),
    }


@pytest.mark.parametrize("strategy", ROW_BY_ROW)
@quick
@given(pools(), st.randoms(use_true_random=False))
def test_shuffling_the_rows_changes_nothing(strategy, pool, random):
    places = list(range(len(pool["ids"])))
    random.shuffle(places)
    first, other = ranked(pool, strategy), ranked(part(pool, places), strategy)
    assert other.ids == first.ids
    for column in ("priorities", "alignments", "norms", "signal", "pass_rates"):
        assert getattr(other, column).tolist() == getattr(first, column).tolist(), column
    # They stand on the spread of the whole request, which is a sum.
    assert other.weights == pytest.approx(first.weights, abs=1e-9)


@pytest.mark.parametrize("strategy", sorted(set(SKETCH_STRATEGIES) - set(ROW_BY_ROW)))
@quick
@given(st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
def test_shuffling_the_rows_changes_no_set_aware_ranking(strategy, seed, random):
    pool = continuous(seed)
    places = list(range(14))
    random.shuffle(places)
    first, other = ranked(pool, strategy), ranked(part(pool, places), strategy)
    assert other.ids == first.ids
    assert other.priorities == pytest.approx(first.priorities, abs=1e-6)


@pytest.mark.parametrize("strategy", ROW_BY_ROW)
@quick
@given(pools(rows=(2, 24)), st.data())
def test_the_parts_of_a_pool_merge_to_the_whole(strategy, pool, data):
    """Scored on any number of replicas and merged by (priority, id)."""
    count = len(pool["ids"])
    cuts = data.draw(st.lists(st.integers(1, count - 1), unique=True, max_size=4).map(sorted))
    bounds = zip([0, *cuts], [*cuts, count], strict=True)
    parts = [ranked(part(pool, list(range(start, stop))), strategy) for start, stop in bounds]
    merged = sorted((-p, i) for scored in parts for i, p in by_id(scored).items())
    whole = ranked(pool, strategy)
    assert [i for _, i in merged] == whole.ids
    assert [-p for p, _ in merged] == whole.priorities.tolist()


@quick
@given(pools(), st.floats(1e-3, 1e3))
def test_a_longer_sketch_has_the_same_direction(pool, factor):
    pool = {**pool, "dtype": "float32"}
    places = range(0, len(pool["ids"]), 2)
    scaled = pool["sketches"].copy()
    scaled[places] *= factor
    lengths = {pool["ids"][i]: factor for i in places}
    for strategy, by_length in (("cosine", False), ("anti", False), ("dot", True), ("norm", True)):
        first, other = by_id(ranked(pool, strategy)), by_id(ranked(pool, strategy, sketches=scaled))
        for problem_id, value in first.items():
            wanted = value * lengths.get(problem_id, 1.0) if by_length else value
            assert other[problem_id] == pytest.approx(wanted, rel=1e-5, abs=1e-5 * max(1.0, factor))
            if problem_id not in lengths:
                assert other[problem_id] == value


@quick
@given(pools(), st.sampled_from([2.0**-10, 0.5, 4.0, 2.0**20]))
def test_another_unit_of_the_gradients_leaves_cosine_alone_to_the_bit(pool, factor):
    pool = {**pool, "dtype": "float32"}
    first, other = ranked(pool, "cosine"), ranked(pool, "cosine", sketches=pool["sketches"] * factor)
    assert other.ids == first.ids
    assert other.priorities.tolist() == first.priorities.tolist()
    assert other.weights == pytest.approx(first.weights, abs=1e-9)


@quick
@given(pools())
def test_anti_reverses_cosine_up_to_ties(pool):
    cosine, anti = ranked(pool, "cosine"), ranked(pool, "anti")
    assert by_id(anti) == {i: -p for i, p in by_id(cosine).items()}
    values = by_id(cosine)
    assert [values[i] for i in anti.ids] == cosine.priorities.tolist()[::-1]
    assert anti.ids == sorted(values, key=lambda i: (values[i], i))


@quick
@given(pools())
def test_the_opposite_validation_gradient_negates_alignments(pool):
    first, other = ranked(pool, "cosine"), ranked(pool, "cosine", validation=-pool["validation"])
    assert by_id(other, "alignments") == {i: -a for i, a in by_id(first, "alignments").items()}
    assert other.ids == ranked(pool, "anti").ids
    assert by_id(other, "norms") == by_id(first, "norms")


@pytest.mark.parametrize("strategy", ["cosine", "dot", "anti", "norm", "learnalign", "cosine_accuracy"])
@quick
@given(pools(rows=(1, 12)), st.data())
def test_duplicates_of_a_row_tie_and_stand_side_by_side_by_id(strategy, pool, data):
    count = len(pool["ids"])
    copied = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20))
    more = part(pool, [*range(count), *copied])
    more["ids"] = [*pool["ids"], *(f"copy {n:02d} of {i}" for n, i in enumerate(copied))]
    values = by_id(ranked(more, strategy))
    for n, i in enumerate(copied):
        assert values[f"copy {n:02d} of {i}"] == values[pool["ids"][i]]
    assert list(values) == sorted(values, key=lambda i: (-values[i], i))


@pytest.mark.parametrize("strategy", SKETCH_STRATEGIES)
@quick
@given(pools())
def test_everything_is_within_its_bounds(strategy, pool):
    scored = ranked(pool, strategy)
    assert sorted(scored.ids) == sorted(pool["ids"])
    assert np.isfinite(scored.priorities).all()
    assert (np.diff(scored.priorities) <= 0).all()
    assert (abs(scored.alignments) <= 1).all()
    assert ((scored.weights >= 0) & (scored.weights <= 1)).all()
    assert (scored.norms >= 0).all()
    zero = {i for i, row in zip(pool["ids"], pool["sketches"], strict=True) if not row.any()}
    assert {i for i, has in zip(scored.ids, scored.signal, strict=True) if not has} == zero
    assert all(by_id(scored, "alignments")[i] == by_id(scored, "weights")[i] == 0 for i in zero)


@pytest.mark.parametrize("strategy", ROW_BY_ROW)
@quick
@given(pools(rows=(2, 24)), st.data())
def test_a_row_that_is_rejected_leaves_the_others_alone(strategy, pool, data):
    count = len(pool["ids"])
    bad = data.draw(st.integers(0, count - 1))
    broken = pool["sketches"].copy()
    broken[bad, data.draw(st.integers(0, broken.shape[1] - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    first = ranked(part(pool, [i for i in range(count) if i != bad]), strategy)
    other = ranked(pool, strategy, sketches=broken)
    assert [row.problem_id for row in other.rejected] == [pool["ids"][bad]]
    assert by_id(other) == by_id(first)
    assert by_id(other, "weights") == pytest.approx(by_id(first, "weights"), abs=1e-9)


@pytest.mark.parametrize("strategy", SKETCH_STRATEGIES)
@quick
@given(pools(), st.integers(0, 30))
def test_the_same_request_gives_the_same_reply_and_selects_a_prefix(strategy, pool, select):
    count = len(pool["ids"])

    def reply():
        given = {k: v for k, v in pool.items() if k not in ("sketches", "validation")}
        request = request_of(pool["sketches"], select=select, request_id="again", **given)
        evidence = Evidence(np.zeros(count), np.zeros(count), 0.3)
        scored = score(request, strategy, pool["validation"], evidence, CPU)
        return score_commit(request, b"digest", strategy, None, scored)

    first = reply()
    assert reply().reply == first.reply
    ranking = msgpack.unpackb(first.reply)
    assert ranking["selected"] == ranking["problem_ids"][:select]
    assert first.selected.tolist() == [place < select for place in range(count)]
    assert ranking["priorities"] == sorted(ranking["priorities"], reverse=True)
