"""Places and bytes: counted, refused at the limit, and given back whatever happens."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradalign import Overloaded
from gradalign_scorer.http.admission import Admission


def held(admission):
    return admission.requests, admission.bytes


def test_counts_what_is_held():
    admission = Admission(3, 100)
    with admission.admit() as first:
        first.claim(10)
        first.claim(5)
        assert held(admission) == (1, 15)
        with admission.admit() as second:
            second.claim(85)
            assert held(admission) == (2, 100)
        assert held(admission) == (1, 15)
    assert held(admission) == (0, 0)


def test_a_place_more_is_refused_with_the_setting_that_raises_the_limit():
    admission = Admission(2, 100)
    with admission.admit(), admission.admit():
        with pytest.raises(Overloaded, match=r"holds 2 requests.*GRADALIGN_MAX_REQUESTS") as caught:
            admission.admit()
        assert caught.value.retry_after == 0.1
        assert caught.value.status == 429
    with admission.admit():
        assert held(admission) == (1, 0)


def test_bytes_more_are_refused_and_not_counted():
    admission = Admission(2, 100)
    with admission.admit() as first, admission.admit() as second:
        first.claim(60)
        with pytest.raises(Overloaded, match=r"60 bytes.*41 more.*GRADALIGN_MAX_ADMITTED_BYTES"):
            second.claim(41)
        assert held(admission) == (2, 60)
        second.claim(40)
    assert held(admission) == (0, 0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, asyncio.CancelledError])
def test_an_error_gives_place_and_bytes_back(error):
    admission = Admission(1, 100)

    def fail():
        with admission.admit() as place:
            place.claim(70)
            raise error

    with pytest.raises(error):
        fail()
    assert held(admission) == (0, 0)


def test_a_refused_claim_gives_back_what_was_claimed_before():
    admission = Admission(1, 100)
    with admission.admit() as place:
        place.claim(99)
        with pytest.raises(Overloaded):
            place.claim(2)
    assert held(admission) == (0, 0)


def test_a_place_that_is_never_entered_takes_nothing():
    admission = Admission(1, 100)
    admission.admit()
    assert held(admission) == (0, 0)
    with admission.admit():
        assert held(admission) == (1, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.booleans()), max_size=40))
def test_never_above_its_limits_and_empty_in_the_end(steps):
    """Requests that come, claim and go in any order: slots stand for connections."""
    admission = Admission(3, 100)
    places = {}
    for slot, count, leave in steps:
        try:
            if slot not in places:
                places[slot] = admission.admit().__enter__()
            places[slot].claim(count)
        except Overloaded:
            pass
        assert admission.requests == len(places) <= 3
        assert 0 <= admission.bytes <= 100
        if leave and slot in places:
            places.pop(slot).__exit__(None, None, None)
    for place in places.values():
        place.__exit__(None, None, None)
    assert held(admission) == (0, 0)
