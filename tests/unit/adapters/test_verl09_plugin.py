"""What verl loads by its entry point: nothing of verl is imported, and where verl is older nothing happens."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

RUN = """
import logging, sys, types
logging.basicConfig(level=logging.WARNING)
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from gradalign_trainer.adapters.verl.v1 import plugin
plugin.install()
assert len([f for f in sys.meta_path if type(f).__name__ == "_Awaiting"]) == 1
assert not any(name == "verl" or name.startswith("verl.") for name in sys.modules)
assert "torch" not in sys.modules
{then}
"""


def run(folder, then):
    done = subprocess.run(
        [sys.executable, "-c", RUN.replace("{then}", then), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def package(folder, *names):
    """Empty packages."""
    for name in names:
        inside = folder.joinpath(*name.split("."))
        inside.mkdir(parents=True, exist_ok=True)
        (inside / "__init__.py").write_text("")


def test_an_older_verl_without_these_trainers_is_left_alone(tmp_path):
    package(tmp_path, "verl", "verl.trainer", "verl.trainer.ppo")
    then = """
import verl.trainer.ppo
try:
    import verl.trainer.ppo.v1
except ModuleNotFoundError as error:
    assert "verl.trainer.ppo.v1" in str(error)
else:
    raise AssertionError("found")
"""
    assert run(tmp_path, then) == ""


def test_trainers_that_it_does_not_know_are_said_once_and_imported_all_the_same(tmp_path):
    package(tmp_path, "verl", "verl.trainer", "verl.trainer.ppo", "verl.trainer.ppo.v1")
    said = run(tmp_path, "import verl.trainer.ppo.v1; import importlib; importlib.reload(verl.trainer.ppo.v1)")
    assert said.count("GradAlign's trainers are not added to verl") == 1
    assert "docs/adapters-verl.md" in said


def test_the_entry_point_leads_to_the_plugin():
    found = [each for each in entry_points(group="verl.plugins") if each.name == "gradalign"]
    if not found:
        pytest.skip("the package is not installed here, or was before it had this entry point")
    assert found[0].value == "gradalign_trainer.adapters.verl.v1.plugin"
