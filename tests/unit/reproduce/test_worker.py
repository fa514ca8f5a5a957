"""Which runs are results: those whose method chose, but for what is a price of it."""

import pytest

from gradalign_trainer.fallbacks import AWAY, NO_SIGNAL, UNFIT, UNMEASURED, Fallbacks
from gradalign_trainer.reproduce.grid.worker import is_result


@pytest.mark.parametrize(
    ("reasons", "whole"),
    [
        ({}, True),
        ({UNMEASURED: 9}, True),
        ({NO_SIGNAL: 5}, True),
        ({NO_SIGNAL: 6}, False),
        ({NO_SIGNAL: 5, UNMEASURED: 2}, True),
        ({AWAY: 1}, False),
        ({UNFIT: 1, UNMEASURED: 1}, False),
    ],
)
def test_a_run_that_chose_at_random_is_no_result(reasons, whole):
    assert is_result(Fallbacks(reasons), 20) is whole
