"""The projection map and its digests."""

import hashlib

import numpy as np
import pytest

from gradalign import InvalidValue, Projection, parameters_digest
from gradalign.wire.countsketch import axis_hashes, axis_key, matrix_shape, sketch_gradients, sketch_matrix, splitmix64

DIGEST = parameters_digest({"b": (3,), "a": (2, 4)})


def projection(**changes):
    return Projection(**{"dim": 64, "seed": 3, "parameters": DIGEST, **changes})


def test_parameters_digest_is_of_the_sorted_lines():
    assert hashlib.sha256(b"a:2x4\nb:3\n").hexdigest() == DIGEST


def test_id_is_of_the_five_keys():
    text = f"1|64|3|{DIGEST}|none"
    assert projection().id == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_map_round_trip():
    assert Projection.from_map(projection().to_map()) == projection()


@pytest.mark.parametrize("key", ["dim", "seed", "parameters", "preconditioner"])
def test_every_key_changes_the_id(key):
    other = {"dim": 65, "seed": 4, "parameters": "0" * 64, "preconditioner": "adam-12"}
    assert projection(**{key: other[key]}).id != projection().id


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"id": "0" * 16}, "projection.id", "the other keys give"),
        ({"dim": 0}, "projection.dim", "from 1 to"),
        ({"dim": "64"}, "projection.dim", "integer"),
        ({"dim": True}, "projection.dim", "integer"),
        ({"seed": -1}, "projection.seed", "from 0"),
        ({"layout": 2}, "projection.layout", "layout 1"),
        ({"parameters": "xyz"}, "projection.parameters", "SHA-256"),
        ({"preconditioner": "a b"}, "projection.preconditioner", "letters"),
        ({"extra": 1}, "projection", "exactly the keys"),
    ],
)
def test_wrong_maps_are_refused_by_name(change, param, says):
    with pytest.raises(InvalidValue, match=says) as caught:
        Projection.from_map({**projection().to_map(), **change})
    assert caught.value.param == param


def test_splitmix64_matches_the_published_sequence():
    # First outputs of the reference generator seeded with 1234567: state advances by the golden gamma.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * gamma) % 2**64 for i in range(3)], dtype=np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert splitmix64(states).tolist() == expected


def test_axis_hashes_of_a_shard_are_a_slice_of_the_whole():
    whole = axis_hashes(7, "w", "col", 50, 33)
    part = axis_hashes(7, "w", "col", 20, 33, start=11)
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[11:31], b)


def test_axis_key_depends_on_seed_name_and_side():
    keys = {axis_key(s, n, side) for s in (0, 1) for n in ("a", "b") for side in ("row", "col")}
    assert len(keys) == 8


def test_matrix_shape_folds_the_first_axes():
    assert [matrix_shape(s) for s in ((), (5,), (2, 3), (2, 3, 4))] == [(1, 1), (1, 5), (2, 3), (6, 4)]


def test_sketch_matrix_places_every_element_by_the_rule():
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(3, 5))
    (hr, sr), (hc, sc) = axis_hashes(2, "w", "row", 3, 7), axis_hashes(2, "w", "col", 5, 7)
    expected = np.zeros(7)
    for r in range(3):
        for c in range(5):
            expected[(hr[r] + hc[c]) % 7] += sr[r] * sc[c] * gradient[r, c]
    np.testing.assert_allclose(sketch_matrix(gradient, "w", dim=7, seed=2), expected, rtol=0, atol=1e-12)


def test_sketch_of_a_model_is_the_sum_of_its_parameters():
    rng = np.random.default_rng(0)
    grads = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=6)}
    total = sum(sketch_matrix(g, n, dim=16, seed=1) for n, g in grads.items())
    np.testing.assert_allclose(sketch_gradients(grads, dim=16, seed=1), total)
