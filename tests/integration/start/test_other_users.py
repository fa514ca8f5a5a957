"""A user without a home, who owns neither the packages nor the folder: sketches and serves, or is told what to give."""

import os
import signal
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from rawhttp import wait_until
from servers import server
from strangers import as_stranger

from gradalign.sketch.kernels import cpu as compiled
from gradalign.sketch.kernels import gpu as fused

SKETCH = """
import logging; logging.basicConfig(level=logging.INFO)
import torch
from torch import nn
from gradalign.sketch import Sketcher
from gradalign.sketch.kernels import cpu as compiled
torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3))
sketcher = Sketcher(model, dim=64, seed=1)
model(torch.arange(5)).square().sum().backward()
print("compiled" if compiled.available() else "torch", sketcher.from_grads().double().norm().item())
"""
HOMES = [None, "/", "/nowhere"]


@pytest.fixture
def folder():
    """An open folder with a short name."""
    with tempfile.TemporaryDirectory(prefix="ga-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.mark.skipif(not compiled.available(), reason="numba is not installed")
@pytest.mark.parametrize("home", HOMES)
def test_the_sketcher_compiles_without_a_cache(home):
    found, _ = as_stranger("-c", SKETCH, home=home).communicate(timeout=170)
    assert "\ncompiled " in f"\n{found}", found
    assert found.count("NUMBA_CACHE_DIR names another folder") == 1
    assert "Traceback" not in found


@contextmanager
def serving(port_file, *arguments, home):
    """The status of /readyz of a scorer that then ends in good order."""
    process = as_stranger("-m", "gradalign", "serve", *arguments, home=home)
    try:
        wait_until(lambda: port_file.exists() or process.poll() is not None, seconds=120)
        assert port_file.exists(), process.stdout.read()
        with urllib.request.urlopen(port_file.read_text().strip() + "/readyz") as reply:
            yield reply.status
    finally:
        process.send_signal(signal.SIGINT)
        found, _ = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in found) == (0, False), found


@pytest.mark.parametrize("home", HOMES)
def test_the_scorer_serves_on_a_redis_url(folder, home):
    port_file = folder / "url"
    with server(folder, unixsocketperm="777") as (path, _):
        arguments = ["--port", "0", "--port-file", str(port_file), "--redis-url", f"unix://{path}"]
        with serving(port_file, *arguments, home=home) as status:
            assert status == 200


def test_the_scorer_serves_on_an_embedded_store_in_a_folder_that_is_given(folder):
    port_file = folder / "url"
    arguments = ["--port", "0", "--port-file", str(port_file), "--data-dir", str(folder / "data")]
    with serving(port_file, *arguments, home=None) as status:
        assert status == 200


@pytest.mark.parametrize("home", HOMES)
def test_an_embedded_store_without_a_folder_names_the_flag(home):
    process = as_stranger("-m", "gradalign", "serve", "--port", "0", home=home)
    found, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert "GRADALIGN_DATA_DIR (--data-dir)" in found
    assert "Traceback" not in found


@pytest.mark.parametrize("command", ["train", "rank", "status", "reproduce"])
def test_the_other_commands_start(command):
    process = as_stranger("-m", "gradalign", command, "--help", home=None)
    found, _ = process.communicate(timeout=100)
    assert process.returncode == 0, found


def test_triton_gets_a_folder_of_its_own_where_it_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    fused.ensure_cache()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "cache")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file/cache"))
    fused.ensure_cache()
    assert Path(os.environ["TRITON_CACHE_DIR"]).is_dir()
    assert Path(os.environ["TRITON_CACHE_DIR"]) != tmp_path / "file/cache"
