"""How an error quotes what a stranger sent: briefly, and without reading more of it than it shows."""

import time

import pytest

from gradalign.wire.checks import shown


def nested(depth, wrap):
    value = None
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: (v,)])
def test_nesting_beyond_the_stack_is_quoted(wrap):
    assert len(shown(nested(5000, wrap))) <= 80


def test_a_large_value_is_not_read_whole():
    values = ["x" * 20_000_000, b"x" * 20_000_000, [1.5] * 5_000_000, dict.fromkeys(range(1000), "x" * 100)]
    started = time.thread_time()  # of the processor, which others may want too
    for value in values:
        assert len(shown(value)) <= 80
    assert time.thread_time() - started < 0.1  # the repr of the first alone takes as long


@pytest.mark.parametrize("value", [None, True, 5, 1.5, "a'b", b"x", [1, "a", None], {"a": [1.0]}, (1,), float("nan")])
def test_a_small_value_is_quoted_as_it_is(value):
    assert shown(value) == repr(value)
