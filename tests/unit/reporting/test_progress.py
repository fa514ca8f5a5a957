"""Progress: bars where there is a terminal, log lines where there is none."""

import io
import logging

from rich.console import Console

from gradalign_trainer.records import RoundReport
from gradalign_trainer.reporting.progress import RunProgress, Together, no_progress, show_progress


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def pipe():
    return Console(file=io.StringIO(), force_terminal=False, width=120)


def drawn(console):
    return console.file.getvalue()


def report(number, pass_rate=None, **figures):
    return RoundReport(round_number=number, policy_version=4 * number, pass_rate=pass_rate, figures=figures)


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self):
        return self.now


def test_nobody_is_told():
    with no_progress("reading", None) as advance:
        advance(5)


def test_a_terminal_gets_a_bar_that_goes_away():
    console = terminal()
    with show_progress("reading a.jsonl", 4, console=console) as advance:
        advance(1)
        advance(3)
    assert "reading a.jsonl" in drawn(console)
    assert "100%" in drawn(console)
    assert drawn(console).endswith("\x1b[2K")


def test_elsewhere_a_line_is_logged_every_ten_seconds(caplog):
    caplog.set_level(logging.INFO, "gradalign_trainer")
    console, clock = pipe(), Clock()
    with show_progress("reading", 200, console=console, clock=clock) as advance:
        for seconds in (3, 9, 10, 15, 21):
            clock.now = seconds
            advance(20)
    assert [record.getMessage() for record in caplog.records] == [
        "reading: 30%, about 23 s left",
        "reading: 50%, about 21 s left",
    ]
    assert drawn(console) == ""


def test_what_takes_long_is_told_in_minutes_and_hours(caplog):
    caplog.set_level(logging.INFO, "gradalign_trainer")
    clock = Clock()
    with show_progress("reading", 1000, console=pipe(), clock=clock) as advance:
        for seconds, amount in ((11, 0), (30, 20), (60, 1), (120, 879)):
            clock.now = seconds
            advance(amount)
    lefts = [message.rpartition("about ")[2] for message in caplog.messages]
    assert lefts == ["reading: 0%", "24 min left", "47 min left", "13 s left"]
    with show_progress("reading", 1000, console=pipe(), clock=clock) as advance:
        clock.now += 30
        advance(2)
    assert caplog.messages[-1].endswith("about 4 h 10 min left")


def test_without_a_total_the_amount_is_logged(caplog):
    caplog.set_level(logging.INFO, "gradalign_trainer")
    clock = Clock()
    with show_progress("reading", None, console=pipe(), clock=clock) as advance:
        clock.now = 11
        advance(12345)
    assert caplog.messages == ["reading: 12,345"]


def test_what_is_quick_says_nothing(caplog):
    caplog.set_level(logging.INFO, "gradalign_trainer")
    with show_progress("reading", 2, console=pipe()) as advance:
        advance(2)
    assert caplog.messages == []


def test_a_run_on_a_terminal_shows_rounds_and_the_stage(caplog):
    caplog.set_level(logging.INFO, "gradalign_trainer")
    console = terminal()
    with RunProgress(3, description="my-run", console=console) as progress:
        progress.stage("rollouts", 8)
        for _ in range(5):
            progress.advance()
        progress._bars.refresh()
        progress.report(report(1, pass_rate=0.25, reward=0.5))
        progress._bars.refresh()
    for text in ("my-run", "rollouts", "5/8", "1/3", "pass rate 0.250  reward 0.500"):
        assert text in drawn(console), text
    assert caplog.messages == []


def test_a_stage_begins_at_nothing():
    console = terminal()
    with RunProgress(3, console=console) as progress:
        progress.stage("rollouts", 8)
        progress.advance()
        progress.stage("updates", 4)
        progress._bars.refresh()
    assert "updates" in drawn(console)
    assert "0/4" in drawn(console)


def test_elsewhere_a_run_logs_a_line_a_round(caplog):
    caplog.set_level(logging.INFO, "gradalign_trainer")
    console = pipe()
    with RunProgress(3, console=console) as progress:
        progress.stage("rollouts", 8)
        progress.advance()
        progress.report(report(1))
        progress.report(report(2, pass_rate=0.5))
    assert [message.rstrip() for message in caplog.messages] == ["rounds: 1 of 3", "rounds: 2 of 3  pass rate 0.500"]
    assert drawn(console) == ""


def test_together_tells_each_observer_in_order():
    told = []

    class Notes:
        def __init__(self, name):
            self.name = name

        def stage(self, name, total):
            told.append((self.name, "stage", name, total))

        def advance(self, amount=1):
            told.append((self.name, "advance", amount))

        def report(self, report):
            told.append((self.name, "report", report.round_number))

    both = Together(Notes("a"), Notes("b"))
    both.stage("rollouts", 8)
    both.advance()
    both.report(report(2))
    assert told == [
        (name, *what) for what in (("stage", "rollouts", 8), ("advance", 1), ("report", 2)) for name in "ab"
    ]
