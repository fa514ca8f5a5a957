"""The ledger of a shared ranking: a batch is there whole or not at all, and other settings are refused by name."""

import numpy as np
import pytest

from gradalign.errors import GradAlignError
from gradalign_trainer.rank.distributed.shards import Batch, Pooled, Shard, ShardLedger
from gradalign_trainer.rank.steps.responses import ResponseGroup

DIM, SIZE, GROUPS = 4, 3, 8


def shard(start, stop):
    """Of groups whose every figure is their position."""
    numbers = np.arange(start, min(stop, GROUPS))
    floats = numbers.astype(np.float64)
    return Shard(floats, floats, floats, numbers, numbers, np.repeat(numbers[:, None], DIM, 1).astype(np.float32))


def batch(number, part="train"):
    groups = (ResponseGroup(number * SIZE, ("Q",), ("A",), (1.0,)),)
    return Batch(part, number, groups, 0, exact=False)


@pytest.fixture
def ledger(tmp_path):
    return ShardLedger.begin(tmp_path / "s.shards", {"dim": DIM}, SIZE, resume=False)


def test_what_is_missing_is_what_is_not_whole(ledger):
    assert ledger.missing("train", GROUPS) == [0, 1, 2]
    for number in (2, 0):
        ledger.add(batch(number), shard(number * SIZE, number * SIZE + SIZE))
    assert ledger.missing("train", GROUPS) == [1]
    assert ledger.missing("validation", GROUPS) == [0, 1, 2]
    place = ledger.folder / "train/000002.npz"
    place.write_bytes(place.read_bytes()[:-30])  # as a machine that lost its power leaves it
    assert ledger.missing("train", GROUPS) == [1, 2]
    assert [ledger.groups(number, GROUPS) for number in range(3)] == [3, 3, 2]


@pytest.mark.parametrize(("start", "stop"), [(0, 8), (1, 5), (3, 6), (7, 8), (2, 3)])
def test_groups_are_read_by_position_whatever_the_batches(ledger, start, stop):
    for number in range(3):
        ledger.add(batch(number), shard(number * SIZE, number * SIZE + SIZE))
    found = ledger.read("train", start, stop)
    for column, wanted in zip(found, shard(start, stop), strict=True):
        np.testing.assert_array_equal(column, wanted)
        assert column.dtype == wanted.dtype
    assert ledger.cut("train", GROUPS) == sum(range(GROUPS))


def test_the_validation_gradient_is_kept_to_the_bit(ledger):
    assert ledger.pooled() is None
    given = Pooled(0.1, 1 / 3, np.array([0.1, -0.0, 3, 4], np.float32))
    ledger.keep_pooled(given, b"gradient")
    found = ledger.pooled()
    assert (found.loss, found.norm, found.sketch.tobytes()) == (given.loss, given.norm, given.sketch.tobytes())
    assert ledger.gradient() == b"gradient"


def test_it_goes_on_where_it_is_told_to_and_where_the_settings_are_the_same(ledger):
    again = (ledger.folder, {"dim": DIM}, SIZE)
    ShardLedger.begin(*again, resume=False)  # nothing is measured yet
    ledger.add(batch(0), shard(0, SIZE))
    with pytest.raises(GradAlignError, match="holds 1 batches of an interrupted ranking; --resume goes on from them"):
        ShardLedger.begin(*again, resume=False)
    with pytest.raises(GradAlignError, match="groups_per_task was 3 and is 5"):
        ShardLedger.begin(ledger.folder, {"dim": DIM}, 5, resume=True)
    assert ShardLedger.begin(*again, resume=True).missing("train", GROUPS) == [1, 2]


def test_a_batch_is_called_by_its_groups():
    assert str(batch(2)) == "train groups 6 to 6"
