"""Tests the adapters against real trainers, each release in an environment of its own: `make test-adapters`.

`tests/adapters.toml` lists the environments. Each is made once, in `.venv-adapters`, and made anew when its
requirements or pyproject.toml change.

Needs Python 3.11 or newer with venv, and a package index; torch is installed as `make install` does it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / ".venv-adapters"
TABLE = ROOT / "tests/adapters.toml"
BUILDERS = ("setuptools", "wheel", "ninja")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A row of the table; `tests/adapters.toml` says what its fields are."""

    name: str
    tests: list[str]
    extras: list[str] = field(default_factory=list)
    requirements: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)
    listed: str = ""
    python: str = sys.executable
    torch: str = ""
    unisolated: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    marker: str = ""
    options: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9.-]+", self.name):
            raise ValueError(f"name is {self.name!r}; expected small letters, digits, '.' and '-'")
        missing = [path for path in self.tests if not (ROOT / path).exists()]
        if missing or not self.tests:
            raise ValueError(f"tests of {self.name} are {self.tests}; not there: {missing}")

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return HOME / self.name

    @property
    def scripts(self) -> Path:
        """Where its Python lies."""
        return self.folder / "bin"

    def install(self, tools: list[str], torch: str, index: str) -> None:
        """Make it, unless it was made of the same requirements and pyproject.toml.

        Raises:
            CalledProcessError: pip failed, whose words are above.
        """
        torch = self.torch or torch
        own = (self.python, torch, self.extras, self.requirements, self.bare, self.unisolated, self.settings, tools)
        files = [ROOT / name for name in ("pyproject.toml", self.listed) if name]
        made_of = f"{own} {[path.read_text(encoding='utf-8') for path in files]}"
        stamp, digest = self.folder / ".installed", hashlib.sha256(made_of.encode()).hexdigest()
        if stamp.exists() and stamp.read_text(encoding="utf-8") == digest:
            return
        said(f"{self.name}: installing {', '.join([*self.requirements, *self.bare, *self.unisolated])}")
        subprocess.run([self.python, "-m", "venv", "--clear", str(self.folder)], check=True)
        quiet = ("--quiet", "--disable-pip-version-check")
        self.run(ROOT / "deploy/install_torch.py", index, torch, *quiet)
        package = f".[{','.join(self.extras)}]" if self.extras else "."
        listed = ("-r", self.listed) if self.listed else ()
        self.run("-m", "pip", "install", *quiet, torch, "--editable", package, *listed, *self.requirements, *tools)
        if self.bare:
            self.run("-m", "pip", "install", *quiet, "--no-deps", *self.bare)
        if self.unisolated:
            self.run("-m", "pip", "install", *quiet, *BUILDERS)
            self.run("-m", "pip", "install", *quiet, "--no-build-isolation", *self.unisolated)
        stamp.write_text(digest, encoding="utf-8")

    def test(self, workers: str, arguments: list[str]) -> int:
        """Run its tests; the exit status of pytest."""
        said(f"{self.name}: testing")
        marker = ("-m", self.marker) if self.marker else ()
        command = [
            "-m",
            "pytest",
            "-n",
            workers,
            "--dist",
            "worksteal",
            *marker,
            *self.options,
            *self.tests,
            *arguments,
        ]
        return self.run(*command, check=False, GRADALIGN_TEST_ENVIRONMENT=self.name)

    def run(self, *arguments: str | Path, check: bool = True, **settings: str) -> int:
        """Run its Python, which sees this checkout as it is installed there; the exit status."""
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        clean = {name: value for name, value in os.environ.items() if name not in hidden}
        clean |= {**self.settings, **settings, "PATH": f"{self.scripts}{os.pathsep}{os.environ['PATH']}"}
        command = [str(part) for part in (self.scripts / "python", *arguments)]
        return subprocess.run(command, cwd=ROOT, env=clean, check=check).returncode


def main() -> int:
    """Install and test all environments, or the named ones; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default="torch==2.13.0", help="what to install as torch (torch==2.13.0)")
    parser.add_argument("--index", default="auto", help="where torch comes from: deploy/install_torch.py (auto)")
    parser.add_argument("--only", default="", help="names of environments, with spaces between (all)")
    parser.add_argument("--workers", default="2", help="tests at a time (2)")
    parser.add_argument("arguments", nargs="*", help="what pytest gets beside")
    args = parser.parse_args()
    listed = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    table = [Environment(**row) for row in listed["environment"]]
    names, wanted = [row.name for row in table], args.only.split()
    if set(wanted) - set(names):
        parser.error(f"--only {shlex.quote(args.only)}: expected some of {', '.join(names)}")
    results = [tested(row, listed["tools"], args) for row in table if not wanted or row.name in wanted]
    print("\n" + "\n".join(results))
    return int(any(" RED " in result for result in results))


def tested(environment: Environment, tools: list[str], args: argparse.Namespace) -> str:
    """Install and test one; a line of what came of it."""
    began, colour, came = time.monotonic(), "RED", ""
    try:
        environment.install(tools, args.torch, args.index)
        status = environment.test(args.workers, args.arguments)
        colour, came = ("RED", f"pytest ended with {status}") if status else ("green", "")
    except subprocess.CalledProcessError as error:
        came = f"it could not be installed: {shlex.join(error.cmd)} ended with {error.returncode}"
    return f"{environment.name:<20} {colour:<6} {time.monotonic() - began:5.0f} s  {came}"


def said(text: str) -> None:
    """Say how far it is."""
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
