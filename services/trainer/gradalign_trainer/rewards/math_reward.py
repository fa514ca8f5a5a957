"""The reward by `math-verify`: mathematical equality of the final answers.

It departs from calling the library in that the work is done in a process of its own (`math_worker`), which is killed
and replaced when it exceeds its time: the library's limits are SIGALRM signals, which fail outside the main thread,
take the alarm from whoever set one before, and do not interrupt a computation inside C.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

from gradalign.errors import GradAlignError
from gradalign.wire.checks import shown
from gradalign_trainer.problems import Problem

__all__ = ["MathVerify"]

logger = logging.getLogger(__name__)

START_LIMIT = 120.0  # seconds; sympy takes its time on a cold disk
COMMAND = [sys.executable, "-P", "-m", "gradalign_trainer.rewards.math_worker"]


class _Away(Exception):
    """The worker died or ran past its time."""


class _Worker:
    """One process and its pipes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)

    def reply(self, seconds: float) -> dict[str, Any]:
        """The next reply; `_Away` where none comes in time."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                raise _Away
            chunk = os.read(self._stdout.fileno(), 1 << 16)
            if not chunk:
                raise _Away
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        parsed: dict[str, Any] = json.loads(line)
        return parsed

    def send(self, request: dict[str, str]) -> None:
        """Put a request to the worker; `_Away` where it is dead."""
        view = memoryview(json.dumps(request).encode() + b"\n")
        try:
            while view:
                view = view[self._stdin.write(view) or 0 :]
        except OSError as error:
            raise _Away from error

    def stop(self) -> None:
        """Kill the process and close the pipes."""
        self._selector.close()
        self._process.kill()
        self._process.wait()
        self._stdout.close()
        self._stdin.close()


class MathVerify:
    """1 where the completion's final answer equals the problem's mathematically, else 0; callable from any thread.

    The problem's answer is LaTeX with or without dollar signs, a number or an expression; what follows the last `####`
    in it, if it is in GSM8K's form. A completion that cannot be compared in time counts 0. An answer that cannot be
    parsed is reported once per problem, since no completion can match it.

    Args:
        timeout: seconds for one completion, before the worker is killed and replaced.

    Attributes:
        timeouts: completions given up so far.
        unreadable: ids of problems whose answer could not be parsed.

    Raises:
        GradAlignError: `math-verify` is not installed, or the worker does not start.
    """

    def __init__(self, *, timeout: float = 10.0) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise GradAlignError(
                "reward 'math_verify' needs the package math-verify: pip install 'gradalign[trainer]'."
            )
        self._timeout = timeout
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self.timeouts = 0
        self.unreadable: set[str] = set()

    def __call__(self, problem: Problem, completion: str) -> float:
        """1.0 or 0.0."""
        with self._lock:
            right = self._ask(problem, completion)
        if right is None and problem.problem_id not in self.unreadable:
            self.unreadable.add(problem.problem_id)
            logger.warning(
                "No completion can earn a reward on problem %s: math-verify cannot read its answer %s. "
                "Write it as a number, an expression or LaTeX, or drop the problem.",
                problem.problem_id,
                shown(problem.answer),
            )
        return float(right is True)

    def close(self) -> None:
        """Stop the worker; the next call starts another."""
        with self._lock:
            self._stop()

    def _ask(self, problem: Problem, completion: str) -> bool | None:
        worker = self._worker or self._start()
        try:
            worker.send({"answer": problem.answer, "completion": completion})
            right: bool | None = worker.reply(self._timeout)["right"]
        except _Away:
            self.timeouts += 1
            logger.warning(
                "A completion of problem %s counts 0: math-verify gave no verdict in %g s (%d such so far): %s",
                problem.problem_id,
                self._timeout,
                self.timeouts,
                shown(completion[-200:]),
            )
            self._stop()
            return False
        except BaseException:
            self._stop()  # an unread reply must not answer the next question
            raise
        return right

    def _start(self) -> _Worker:
        worker = _Worker()
        try:
            worker.reply(START_LIMIT)
        except _Away as error:
            worker.stop()
            raise GradAlignError(
                f"the process that checks answers did not start; its messages are above. Try: {' '.join(COMMAND)}"
            ) from error
        except BaseException:
            worker.stop()
            raise
        self._worker = worker
        self._finalizer = weakref.finalize(self, worker.stop)
        return worker

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._worker = self._finalizer = None
