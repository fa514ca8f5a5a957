"""docs/cli.md and docs/settings.md say what the code says."""

import importlib.util
import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "scripts/reference.py"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_what_the_code_says(reference):
    for path, text in reference.pages().items():
        assert path.read_text() == text, f"{path.name} is stale; run: make reference"


def test_every_command_has_a_section():
    page = (ROOT / "docs/cli.md").read_text()
    commands = {point.name for point in entry_points(group="gradalign.commands")}
    assert set(re.findall(r"^## gradalign ([\w-]+)$", page, re.MULTILINE)) == commands


def test_every_key_of_the_shipped_configurations_is_on_the_page():
    page = (ROOT / "docs/settings.md").read_text()
    for path in (ROOT / "services/trainer/configs").glob("*.toml"):
        table = tomllib.loads(path.read_text())
        for key, value in table.items():
            names = value if key in ("model", "data", "scorer", "tracking") else [key]
            assert all(f"| `{name}` |" in page for name in names), f"{path.name}: {key}"


def test_no_key_can_be_set_in_a_file():
    assert "| `api_key` |" not in (ROOT / "docs/settings.md").read_text()
