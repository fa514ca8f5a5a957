"""The site builds strictly: what leads nowhere fails, and nothing is loaded from elsewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason="`make docs` installs what builds the site")
ROOT = Path(__file__).parents[2]
FAULTS = """# Faults

[no page](nope.md) [no anchor](adapters.md#nope) [no anchor of a page from elsewhere](../proto/README.md#nope)
[no file](../nope.py) ![no picture](nope.png)
"""


@pytest.fixture
def tree(tmp_path):
    """The pages and what builds them, without those of the Python API, which take the longest."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for folder in ("proto", "services"):  # pages link to lines of code
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", tmp_path)
    for path in ROOT.glob("*.md"):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    config = (ROOT / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"  - mkdocstrings:\n(    .*\n)+", "", config))
    return tmp_path


def build(tree):
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=tree, capture_output=True, text=True, check=False
    )


def test_pages_build_and_load_nothing_from_elsewhere(tree):
    done = build(tree)
    assert done.returncode == 0, done.stderr
    for page in (tree / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]*)"|<link[^>]*\shref="([^"]*)"', page.read_text())
        outside = [one or other for one, other in loaded if re.match("https?:|//", one or other)]
        assert not outside, f"{page.name}: {outside}"


def test_what_leads_nowhere_fails(tree):
    (tree / "docs/start.md").write_text(FAULTS)
    done = build(tree)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "WARNING" in line and "start.md" in line]
    for fault in ("nope.md", "adapters.md#nope", "wire.md#nope", "nope.py", "nope.png"):
        assert any(fault in line for line in said), f"{fault}: {done.stderr}"
