"""What a grid tells while it goes."""

import io
import logging

import pytest
from rich.console import Console

from gradalign_trainer.reproduce.grid.cells import Cell
from gradalign_trainer.reproduce.grid.progress import LINE_EVERY, GridProgress

FIRST, SECOND, THIRD = (Cell(seed, "coin", "random") for seed in range(3))
OTHER = Cell(0, "coin", "cosine")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told(caplog):
    """What catches the messages."""
    caplog.set_level(logging.INFO)
    return caplog


def progress(cells, clock, *, workers=1, console=None):
    console = console or Console(file=io.StringIO(), force_terminal=False)
    return GridProgress(cells, workers, console, clock=clock)


def test_lines_tell_how_far_running_cells_are_before_any_is_done(clock, told):
    with progress([FIRST, SECOND], clock) as bar:
        bar.running({FIRST: (0, 10)})
        clock.now = 2 * LINE_EVERY
        bar.running({FIRST: (2, 10)})  # two rounds a minute: 8 are left of it, and 10 of the next
        bar.running({FIRST: (2, 10)})
    assert told.messages == ["0 of 2 cells done, about 9 min left; now coin, random, seed 0: 2 of 10 rounds"]


def test_no_time_is_told_where_nothing_is_known(clock, told):
    with progress([FIRST], clock) as bar:
        clock.now = 2 * LINE_EVERY
        bar.running({FIRST: (0, 10)})
    assert told.messages == ["0 of 1 cells done; now coin, random, seed 0: 0 of 10 rounds"]


def test_the_time_left_goes_by_the_method_and_the_workers(clock, told):
    with progress([FIRST, SECOND, THIRD, OTHER], clock, workers=2) as bar:
        bar.finished(FIRST, 600.0)
        clock.now = 2 * LINE_EVERY
        bar.running({SECOND: (5, 10)})  # 300 s of it, 600 s of the third, and as much of the method that nobody knows
    assert told.messages == ["1 of 4 cells done, about 12 min left; now coin, random, seed 1: 5 of 10 rounds"]


def test_the_last_cell_is_told_at_once(clock, told):
    with progress([FIRST], clock) as bar:
        bar.running({FIRST: (9, 10)})
        bar.finished(FIRST, 60.0)
    assert told.messages == ["1 of 1 cells done, about 0 min left"]


def test_a_terminal_has_a_bar_for_each_cell_that_runs(clock, told):
    file = io.StringIO()
    with progress([FIRST, SECOND], clock, console=Console(file=file, force_terminal=True, width=120)) as bar:
        bar.running({FIRST: (3, 10)})
    assert "coin, random, seed 0" in file.getvalue()
    assert "3/10" in file.getvalue()
    assert "coin, random, seed 1" not in file.getvalue()
    assert not told.messages
