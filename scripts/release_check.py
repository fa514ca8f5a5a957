"""Checks that what would be released works: `make release-check`.

Builds the sdist, and the wheel from it; installs the wheel alone in two empty environments, outside the checkout; runs the
slim client in the one, and `gradalign demo --rounds 2` in the other. The version must be that of CHANGELOG.md, and of a tag
at this commit.

Needs Python 3.11 or newer with venv, and a package index; torch is installed as `make install` does it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "fastapi", "redis", "transformers", "pydantic")
SLIM = f"import sys, gradalign; print(gradalign.__version__, [name for name in {HEAVY!r} if name in sys.modules])"
BEGUN = time.monotonic()


def main() -> int:
    """Run every check; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default="torch==2.13.0", help="what to install as torch (torch==2.13.0)")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="gradalign-release-") as folder:
            version = checked_version()
            wheel = built(Path(folder), version)
            check_client(Path(folder), wheel, version)
            check_demo(Path(folder), wheel, args.torch)
    except CheckError as error:
        sys.stderr.write(f"release-check: {error}\n")
        return 1
    said(f"gradalign {version} can be released")
    return 0


class CheckError(Exception):
    """A check that failed, and what to do."""


def checked_version() -> str:
    """The version, which pyproject.toml, the package, CHANGELOG.md and a tag at this commit agree on.

    Raises:
        CheckError: they do not.
    """
    said("versions")
    version = str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    found = {
        "CHANGELOG.md": re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE),
        "gradalign.__version__": re.search(
            r'^__version__ = "(.+)"$', (ROOT / "proto/gradalign/__init__.py").read_text(encoding="utf-8"), re.MULTILINE
        ),
        "CITATION.cff": re.search(
            r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE
        ),
    }
    for place, match in found.items():
        if match is None or match[1] != version:
            raise CheckError(f"pyproject.toml says version {version}, {place} {match and match[1]}; make them equal")
    if (ROOT / ".git").exists():
        tags = [tag for tag in run("git", "-C", ROOT, "tag", "--points-at", "HEAD").split() if re.match(r"v\d", tag)]
        if tags and f"v{version}" not in tags:
            raise CheckError(
                f"this commit has the tag {', '.join(tags)}, and the version is {version}; tag it v{version}"
            )
    return version


def built(folder: Path, version: str) -> Path:
    """Build sdist and wheel, and look at what is in them; the wheel.

    Raises:
        CheckError: a file is missing, or one is in it that should not be.
    """
    said("building sdist and wheel")
    python = environment(folder / "build", "build")
    run(python, "-m", "build", "--outdir", folder / "dist", ROOT)
    wheel, sdist = (next((folder / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    tops = {name.split("/")[0] for name in names} - {f"gradalign-{version}.dist-info"}
    if tops != {"gradalign", "gradalign_scorer", "gradalign_trainer"}:
        raise CheckError(f"the wheel holds {sorted(tops)}; [tool.hatch.build.targets.wheel] says what it packs")
    for suffix in ("py.typed", ".lua", ".html", ".js", ".css"):
        if not any(name.endswith(suffix) for name in names):
            raise CheckError(f"the wheel has no *{suffix}; the package reads such files when it runs")
    with tarfile.open(sdist) as packed_sources:
        sources = packed_sources.getnames()
    for path in ("README.md", "LICENSE", "CHANGELOG.md", "proto/gradalign/__init__.py", "tests/conftest.py"):
        if f"gradalign-{version}/{path}" not in sources:
            raise CheckError(f"the sdist has no {path}; look at .gitignore and [tool.hatch.build]")
    said(f"{wheel.name} {wheel.stat().st_size >> 10} KiB, {sdist.name} {sdist.stat().st_size >> 10} KiB")
    return wheel


def check_client(folder: Path, wheel: Path, version: str) -> None:
    """The wheel without extras: it imports slim, and its commands answer.

    Raises:
        CheckError: something heavy was loaded, or a command failed.
    """
    said("the client alone: installing")
    python = environment(folder / "client", str(wheel))
    script = python.parent / "gradalign"
    said("the client alone: import, --version, status --help")
    for printed, expected in (
        (run(python, "-c", SLIM, cwd=folder), f"{version} []"),
        (run(script, "--version", cwd=folder), f"gradalign {version}"),
    ):
        if printed.strip() != expected:
            raise CheckError(f"the client alone printed {printed.strip()!r}; expected {expected!r}")
    run(script, "status", "--help", cwd=folder)


def check_demo(folder: Path, wheel: Path, torch: str) -> None:
    """The wheel with scorer and trainer: two rounds of the demo.

    Raises:
        CheckError: the demo failed, or left no picture.
    """
    said(f"scorer and trainer: installing {torch}")
    python = environment(folder / "full", torch)
    said("scorer and trainer: installing the rest")
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{wheel}[scorer,trainer]")
    said("scorer and trainer: gradalign demo --rounds 2")
    run(python.parent / "gradalign", "demo", "--rounds", "2", "--output", folder / "demo", cwd=folder)
    if not list((folder / "demo").rglob("*.png")):
        raise CheckError("the demo ended without its picture")


def environment(folder: Path, *requirements: str) -> Path:
    """An empty environment with these installed; its Python."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin/python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements)
    return python


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command prints; it sees nothing of this checkout.

    Raises:
        CheckError: it failed; the message has the end of its output.
    """
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    clean = {k: v for k, v in os.environ.items() if k not in hidden and not k.startswith("GRADALIGN_")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = " ".join(map(str, command))
        raise CheckError(f"`{words}` ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def said(text: str) -> None:
    """Say how far it is."""
    print(f"==> {time.monotonic() - BEGUN:5.0f} s  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
