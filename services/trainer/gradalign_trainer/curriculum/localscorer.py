"""A scorer of one's own, with an embedded store, for as long as a block runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradalign.errors import GradAlignError

__all__ = ["local_scorer"]

START_LIMIT = 120.0  # seconds; a cold disk may take its time over torch
STOP_LIMIT = 30.0


@contextmanager
def local_scorer() -> Iterator[str]:
    """Run `gradalign serve` in a process and a temporary folder of its own; yields its URL. It ends with this process too.

    Raises:
        GradAlignError: it does not start; the end of its log is in the message.
    """
    with tempfile.TemporaryDirectory(prefix="gradalign-") as folder:
        place = Path(folder)
        attached = [sys.executable, "-m", "gradalign_trainer.runs.parent_death", str(os.getpid())]
        command = [*attached, "serve", "--port", "0", "--data-dir", str(place / "data")]
        # The settings of some other scorer must not reach this one.
        own = {name: value for name, value in os.environ.items() if not name.startswith("GRADALIGN_")}
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(  # noqa: S603
                [*command, "--port-file", str(place / "url")], env=own, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield _address(process, place)
        finally:
            _stop(process)


def _address(process: subprocess.Popen[bytes], place: Path) -> str:
    deadline = time.monotonic() + START_LIMIT
    while not (place / "url").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            end = (place / "log").read_text(errors="replace")[-2000:].strip()
            raise GradAlignError(
                f"the scorer did not start within {START_LIMIT:.0f} s. Its log ends with:\n{end}\n"
                "It needs the scorer's packages: pip install 'gradalign[scorer]'. Or give the URL of one that runs."
            )
        time.sleep(0.05)
    return (place / "url").read_text().strip()


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
