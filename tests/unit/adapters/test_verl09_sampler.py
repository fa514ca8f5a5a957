"""The order of verl's dataset: validation problems now and then, chosen ones, and the order of an epoch for the rest."""

from collections import Counter

import pytest

from gradalign_trainer.adapters.verl.problems import ProblemRows
from gradalign_trainer.adapters.verl.v1.sampler import CurriculumSampler

ROWS = ProblemRows(
    {f"p{number}": [number] for number in range(10)}, {f"t{number}": [10 + number] for number in range(3)}
)


def sampler(rows=ROWS, size=4, **settings):
    calls = {"choose": lambda pool, count, draw: (), "missing": lambda: False, "joins": lambda: True}
    plain = {"refresh_every": 100, "trusted_share": 0.25, "seed": 1, "shuffle": True}
    return CurriculumSampler(rows, size, **{**calls, **plain, **settings})


def batches(made, count, size=4):
    rows = iter(made)
    return [[next(rows) for _ in range(size)] for _ in range(count)]


def test_trusted_problems_join_every_so_many_batches():
    drawn = batches(sampler(refresh_every=2), 3)
    assert [sum(row >= 10 for row in batch) for batch in drawn] == [1, 0, 1]
    assert drawn[0][0] >= 10


def test_they_join_every_other_batch_while_there_is_no_validation_gradient():
    drawn = [row for made in (sampler(missing=lambda: True),) for row in batches(made, 3)]
    assert [sum(row >= 10 for row in batch) for batch in drawn] == [1, 0, 1]


def test_they_take_their_share_and_leave_a_candidate():
    assert sum(row >= 10 for row in batches(sampler(trusted_share=0.75), 1)[0]) == 3
    two = sampler(size=2, trusted_share=0.9)
    assert [row >= 10 for row in batches(two, 1, size=2)[0]] == [True, False]


def test_they_stay_away_while_what_is_measured_of_them_would_be_lost():
    made = sampler(refresh_every=1, missing=lambda: True, joins=lambda: False)
    assert max(row for batch in batches(made, 2) for row in batch) < 10


def test_what_is_chosen_comes_and_the_order_of_the_epoch_fills_up():
    asked = []

    def choose(pool, count, draw):
        asked.append((len(pool), count, draw))
        return ["p7", "p2"]

    drawn = batches(sampler(choose=choose), 2)
    assert asked == [(10, 3, 0), (10, 4, 1)]
    assert drawn[1][:2] == [7, 2]
    assert all(len(set(batch)) == 4 for batch in drawn)


def test_without_a_choice_an_epoch_holds_every_candidate_once():
    alone = ProblemRows(ROWS.pool, {})
    drawn = [row for batch in batches(sampler(alone, size=5, refresh_every=100), 2, size=5) for row in batch]
    assert sorted(drawn) == list(range(10))
    assert drawn != list(range(10))
    plain = [row for batch in batches(sampler(alone, size=5, shuffle=False), 2, size=5) for row in batch]
    assert plain == list(range(10))


def test_rows_of_one_problem_are_one_problem():
    rows = ProblemRows({"a": [0, 1], "b": [2]}, {"t": [3]})
    drawn = Counter(row for batch in batches(sampler(rows, size=2), 2, size=2) for row in batch)
    assert drawn[3] == 1
    assert sum(drawn.values()) == 4


def test_a_batch_larger_than_the_pool_takes_problems_twice():
    drawn = batches(sampler(size=13, refresh_every=1), 1, size=13)[0]
    assert set(drawn) >= set(range(10))


@pytest.mark.parametrize("behind", [0, 3, 8, 13])
def test_it_goes_on_where_its_state_was_taken(behind):
    made = sampler(refresh_every=2)
    assert len(made) == 13
    rows = iter(made)
    for _ in range(behind):
        next(rows, None)
    state = made.state_dict()
    straight = list(rows)
    again = sampler(refresh_every=2)
    again.load_state_dict(state)
    assert list(again) == straight
    assert len(straight) == 13 - behind
