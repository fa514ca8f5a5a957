"""The order of an epoch, and a data loader's draws: what a trainer takes where nobody chooses."""

import pytest
from torch.utils.data import DataLoader

from gradalign_trainer.adapters.base.order import EpochOrder
from gradalign_trainer.adapters.base.sampler import ProblemSampler

IDS = ["a", "b", "c", "d", "e"]


class InOrder:
    """A link that hands out what it was given."""

    def __init__(self, *batches):
        self.batches = list(batches)

    def next(self, count):
        assert len(self.batches[0]) == count
        return self.batches.pop(0)


def test_each_problem_comes_once_an_epoch_in_another_order():
    order = EpochOrder(IDS, 3)
    epochs = [order.take(5) for _ in range(3)]
    assert all(sorted(epoch) == IDS for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    assert order.passed == 15


def test_it_goes_on_from_what_it_passed():
    first, again = EpochOrder(IDS, "x"), EpochOrder(IDS, "x")
    first.take(7)
    again.passed = 7
    assert first.take(6) == again.take(6)


def test_without_shuffling_it_is_as_given():
    assert EpochOrder(IDS, 0, shuffle=False).take(7) == [*IDS, "a", "b"]


@pytest.mark.parametrize(("taken", "count", "twice"), [(["a", "c"], 3, 0), (["a", "c"], 4, 1), (IDS, 5, 5)])
def test_a_taken_one_comes_only_where_no_other_is_left(taken, count, twice):
    found = EpochOrder(IDS, 1).take(count, taken)
    assert len(found) == count
    assert sum(found.count(name) + (name in taken) > 1 for name in set(found)) == twice


def test_a_loader_gets_what_was_chosen_and_rows_of_one_problem_take_turns():
    link = InOrder(["b", "a"], ["a", "c"])
    loader = DataLoader(range(4), batch_size=1, sampler=ProblemSampler(link, ["a", "b", "c", "a"], 2))
    assert [int(row) for row in loader] == [1, 0, 3, 2]
    assert len(loader) == 4  # an epoch is as many rows as there are


def test_a_resumed_sampler_ends_its_batch_and_its_epoch():
    sampler = ProblemSampler(InOrder(["b", "a", "c"]), IDS, 3)
    rows = iter(sampler)
    assert [next(rows), next(rows)] == [1, 0]
    state = sampler.state_dict()
    again = ProblemSampler(InOrder(["d", "e", "a"]), IDS, 3)
    again.load_state_dict(state)
    assert list(again) == [2, 3, 4]
    assert state == {"yielded": 2, "queue": [2]}
