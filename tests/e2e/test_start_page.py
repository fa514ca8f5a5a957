"""docs/start.md, as a reader follows it: a scorer by its command, then every block in order."""

import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from pageblocks import Reader, blocks_of

PAGE = (Path(__file__).parents[2] / "docs/start.md").read_text()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def served(tmp_path):
    """The scorer that the page's first block starts; its URL."""
    port = free_port()
    command = shlex.split(blocks_of(PAGE, "sh")[0].code.replace("8000", str(port)))
    assert command[:2] == ["gradalign", "serve"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRADALIGN_")}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], env={**clean, "XDG_DATA_HOME": str(tmp_path)}, stderr=subprocess.DEVNULL
    )
    try:
        yield wait_for(process, f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(process, url):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            httpx.get(f"{url}/readyz").raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return url
    raise AssertionError("the scorer did not start")


def test_every_block_runs_and_the_ranking_leaves_out_broken_graders(served, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADALIGN_URL", served)  # the page's reader has the default port
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "gradalign").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m gradalign "$@"\n')
    (commands / "gradalign").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    said = ""
    with Reader({"http://127.0.0.1:8000": served}, tmp_path) as reader:
        for block in blocks_of(PAGE, "sh", "python")[1:]:
            said += reader.run(block) + "\n"
        reader.scope["client"].close()
    assert len(reader.scope["ranking"].selected) == 8
    assert not reader.scope["broken"] & set(reader.scope["ranking"].selected)
    assert "of these with a broken grader: 0" in said
    assert said.count("first-ranking") >= 1
