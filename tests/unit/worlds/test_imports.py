"""A world's module can be the first that a process imports of this package."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["smollm2", "folder", "registry"])
def test_it_needs_nothing_imported_before_it(module):
    command = [sys.executable, "-c", f"import gradalign_trainer.worlds.tasks.{module}"]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""
