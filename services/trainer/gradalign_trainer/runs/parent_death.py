"""Ends a process with the one that started it: one that is killed cannot end its children, so they have to notice.

python -m gradalign_trainer.runs.parent_death PID serve --port 0     the command `gradalign serve --port 0`, while PID lives
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time

from gradalign.cli import main

__all__ = ["end_with_parent"]

LOOK_EVERY = 1.0  # seconds


def end_with_parent(pid: int | None = None) -> None:
    """Have this process get a SIGTERM once its parent is gone.

    Args:
        pid: of the parent; None takes the one that `multiprocessing` started this process from, and does nothing elsewhere.
    """
    if pid is None:
        started_by = multiprocessing.parent_process()
        pid = None if started_by is None else started_by.pid
    if pid is not None:
        threading.Thread(target=_watch, args=(pid,), name="lifeline", daemon=True).start()


def _watch(pid: int) -> None:
    while os.getppid() == pid:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
