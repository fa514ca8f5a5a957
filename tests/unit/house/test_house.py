"""The rules of the house: what may import what, how slim the client is, and that public names do not drift."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gradalign

ROOT = Path(__file__).parents[3]
SOURCES = {
    "gradalign": ROOT / "proto/gradalign",
    "gradalign_scorer": ROOT / "services/scorer/gradalign_scorer",
    "gradalign_trainer": ROOT / "services/trainer/gradalign_trainer",
}
FORBIDDEN = {
    "gradalign": {"gradalign_scorer", "gradalign_trainer"},
    "gradalign_scorer": {"gradalign_trainer"},
    "gradalign_trainer": {"gradalign_scorer"},
}


def imported_packages(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", SOURCES)
def test_imports_point_inward(package):
    files = list(SOURCES[package].rglob("*.py"))
    assert files
    for path in files:
        wrong = imported_packages(path) & FORBIDDEN[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_importing_the_client_loads_nothing_heavy():
    heavy = ("torch", "fastapi", "starlette", "redis", "transformers", "pydantic", "matplotlib")
    code = f"import sys, gradalign, gradalign.cli; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_package_shadows_proto_plus():
    assert not (ROOT / "proto/__init__.py").exists()
    assert not (ROOT / "services/__init__.py").exists()


def test_public_names_are_the_ones_imported():
    public = {
        name
        for name, value in vars(gradalign).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("gradalign.")
    }
    assert public | {"__version__"} == set(gradalign.__all__)
    assert gradalign.__all__ == sorted(gradalign.__all__)


def test_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert gradalign.__version__ == version
    assert newest is not None
    assert newest.group(1) == version


@pytest.mark.parametrize("package", SOURCES)
def test_no_library_module_is_a_hall(package):
    for path in SOURCES[package].rglob("*.py"):
        assert path.read_text().count("\n") <= 350, f"{path.relative_to(ROOT)}: split it, one noun per module"
