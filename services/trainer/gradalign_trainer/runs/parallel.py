"""Several training runs at a time, each in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gradalign.errors import GradAlignError
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.records import RoundReport
from gradalign_trainer.runs.parent_death import end_with_parent

__all__ = ["run_parallel"]

logger = logging.getLogger(__name__)

STOP_LIMIT = 10.0  # seconds that a run has to end after it was told to


def run_parallel(configs: Mapping[str, TrainConfig], workers: int, console: Console) -> None:
    """Train all runs, with a bar for each on a terminal and a log line every few rounds elsewhere.

    Args:
        configs: by the name that its bar shows.
        workers: runs at a time.
        console: where to draw.

    Raises:
        GradAlignError: a run failed; the others are ended.
    """
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal)
    waiting = dict(configs)
    running: dict[Connection, _Run] = {}
    with bars:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    name = next(iter(waiting))
                    run = _Run(name, waiting.pop(name), bars)
                    running[run.connection] = run
                for ready in wait(list(running)):
                    assert isinstance(ready, Connection)
                    if running[ready].receive():
                        del running[ready]
        finally:
            for run in running.values():
                run.end()


class _Run:
    """One training in its process, its pipe and its bar."""

    def __init__(self, name: str, config: TrainConfig, bars: Progress) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads half alive
        self.name, self.rounds, self.bars = name, config.rounds, bars
        self.connection, theirs = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(target=_train, args=(config, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.bar = bars.add_task(name, total=config.rounds, note="starting")

    def receive(self) -> bool:
        """Take one message; whether the run is over.

        Raises:
            GradAlignError: it failed.
        """
        try:
            kind, content = self.connection.recv()
        except EOFError:
            self.process.join()
            kind, content = "failed", f"its process ended with status {self.process.exitcode}"
        if kind == "failed":
            raise GradAlignError(f"run {self.name} failed: {content}")
        if kind == "log":
            logger.log(content[0], "%s: %s", self.name, content[1])
        if kind == "report":
            self._show(content)
        if kind == "done":
            self.process.join()
            self.connection.close()
        return bool(kind == "done")

    def _show(self, report: RoundReport) -> None:
        note = "" if report.pass_rate is None else f"pass@1 {report.pass_rate:.3f}"
        self.bars.update(self.bar, completed=report.round_number, note=note)
        if self.bars.disable and (report.round_number % 5 == 0 or report.round_number == self.rounds):
            logger.info("%s: round %d of %d  %s", self.name, report.round_number, self.rounds, note)

    def end(self) -> None:
        """End it, whatever it is doing."""
        self.process.terminate()
        self.process.join(STOP_LIMIT)
        if self.process.is_alive():
            self.process.kill()
        self.connection.close()


class _Teller(logging.Handler):
    """Sends reports and log records of a run through a pipe."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(logging.WARNING)
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        self._connection.send(("log", (record.levelno, record.getMessage())))

    def stage(self, name: str, total: int) -> None:
        """Nothing; rounds are what is shown."""

    def advance(self, amount: int = 1) -> None:
        """Nothing; rounds are what is shown."""

    def report(self, report: RoundReport) -> None:
        self._connection.send(("report", report))


def _train(config: TrainConfig, connection: Any) -> None:
    """The process of a run."""
    import torch

    from gradalign_trainer.reporting.console import hush_weights
    from gradalign_trainer.runs.session import run_training

    end_with_parent()
    hush_weights()
    torch.set_num_threads(1)  # as many processes as cores run already
    teller = _Teller(connection)
    logging.basicConfig(handlers=[teller], force=True)
    try:
        run_training(config, observers=[teller])
    except GradAlignError as error:
        connection.send(("failed", str(error)))
    else:
        connection.send(("done", None))
