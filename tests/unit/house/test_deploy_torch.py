"""Which torch an installation gets: deploy/install_torch.py, run by pip against indexes of this test's own."""

import functools
import http.server
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "deploy/install_torch.py"
CPU = "https://download.pytorch.org/whl/cpu"


@pytest.fixture(scope="module")
def install_torch():
    spec = importlib.util.spec_from_file_location("install_torch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("choice", "linux", "nvidia", "index"),
    [
        ("auto", True, False, CPU),
        ("", True, False, CPU),
        ("auto", True, True, None),
        ("auto", False, False, None),
        ("default", True, False, None),
        ("cpu", True, True, CPU),
        ("cpu", False, False, CPU),
        ("cu130", True, True, "https://download.pytorch.org/whl/cu130"),
        ("rocm7.1", True, False, "https://download.pytorch.org/whl/rocm7.1"),
        ("https://mirror.example/whl/", True, False, "https://mirror.example/whl"),
    ],
)
def test_the_index_that_a_choice_names(install_torch, choice, linux, nvidia, index):
    assert install_torch.index_of(choice, linux=linux, nvidia=nvidia) == index


@pytest.mark.parametrize("choice", ["cuda", "gpu", "ftp://mirror.example", "https://", "cpu/../..", "--pre"])
def test_a_choice_that_names_none_is_refused_with_those_that_would_do(choice):
    done = subprocess.run([sys.executable, SCRIPT, choice, "torch"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    for words in (repr(choice), "TORCH_INDEX", "auto", "default", "cpu", "cu130", "URL"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("trace", ["dev/nvidia0", "proc/driver/nvidia/version", "usr/lib/wsl/lib/nvidia-smi", None])
def test_an_nvidia_driver_is_seen(install_torch, tmp_path, monkeypatch, trace):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert not install_torch.has_nvidia_gpu(tmp_path)
    found = tmp_path / (trace or "bin/nvidia-smi")
    found.parent.mkdir(parents=True)
    found.touch(mode=0o755)
    assert install_torch.has_nvidia_gpu(tmp_path)


def write_wheel(folder, name, version, requires=()):
    """A wheel with nothing in it but what it requires."""
    info = f"{name}-{version}.dist-info"
    folder = folder / name.replace("_", "-")
    folder.mkdir(parents=True, exist_ok=True)
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Indexes as the real ones: PyTorch's has old packages beside the build for the CPU, the default one asks for CUDA."""
    folder = tmp_path_factory.mktemp("indexes")
    write_wheel(folder / "cpu", "torch", "2.13.0+cpu", ["lean"])
    write_wheel(folder / "cpu", "lean", "1.0")
    write_wheel(folder / "default", "torch", "2.13.0", ["lean", "nvidia-runtime"])
    write_wheel(folder / "default", "torch", "2.14.0", ["lean", "nvidia-runtime"])
    write_wheel(folder / "default", "lean", "2.0")
    write_wheel(folder / "default", "nvidia_runtime", "13.0")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def installed(indexes, folder, index, requirement="torch==2.13.0"):
    """What the script puts into an empty environment, and what it says."""
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    done = subprocess.run(
        [sys.executable, SCRIPT, index, requirement, "--quiet", "--disable-pip-version-check"],
        env={**clean, "PIP_PYTHON": str(python), "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"{indexes}/default"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = "from importlib.metadata import distributions as d; print(*sorted(f'{p.name}=={p.version}' for p in d()))"
    listed = subprocess.run([python, "-c", names], capture_output=True, text=True, check=True).stdout.split()
    said = [line for line in done.stderr.splitlines() if line.startswith("torch: ")]
    return listed, said


def test_the_build_of_that_index_is_taken_and_what_it_requires_from_the_default_one(indexes, tmp_path):
    listed, said = installed(indexes, tmp_path, f"{indexes}/cpu")
    assert listed == ["lean==2.0", "torch==2.13.0+cpu"]
    assert said == [f"torch: from {indexes}/cpu"]


def test_the_default_index_is_taken_when_asked_for(indexes, tmp_path):
    listed, said = installed(indexes, tmp_path, "default")
    assert listed == ["lean==2.0", "nvidia-runtime==13.0", "torch==2.13.0"] or "nvidia_runtime==13.0" in listed
    assert said == []


@pytest.mark.parametrize(
    ("index", "requirement", "version", "why"),
    [
        ("http://127.0.0.1:1", "torch==2.13.0", "2.13.0", "refused"),
        ("http://no-such-host.invalid/whl", "torch==2.13.0", "2.13.0", ""),
        ("{indexes}/nothing", "torch==2.13.0", "2.13.0", "it answers 404"),
        ("{indexes}/cpu", "torch==2.14.0", "2.14.0", "pip finds no torch==2.14.0 there"),
    ],
)
def test_an_index_that_cannot_be_used_is_said_and_left(indexes, tmp_path, index, requirement, version, why):
    url = index.format(indexes=indexes)
    listed, (line,) = installed(indexes, tmp_path, url, requirement)
    assert f"torch=={version}" in listed
    for words in (url, why, "default index", "TORCH_INDEX=URL"):
        assert words in line


def test_an_index_that_never_answers_is_not_waited_for(install_torch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        fault = install_torch.fault_of(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.5)
        assert fault
        assert time.monotonic() - start < 10
    assert install_torch.PATIENCE <= 30


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on PATH")
def test_make_hands_the_choice_on(tmp_path):
    def shown(*variables):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TORCH", "MAKE"))}
        command = ["make", "--dry-run", "--always-make", "install", *variables]
        return subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=True).stdout

    assert 'install_torch.py "auto" "torch==' in shown()
    assert 'install_torch.py "cu130" "torch==2.12.0"' in shown("TORCH_INDEX=cu130", "TORCH=torch==2.12.0")


def test_images_take_the_build_for_the_cpu_and_that_for_gpus_the_default():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert services["scorer"]["build"]["args"]["TORCH_INDEX"] == "${TORCH_INDEX:-cpu}"
    assert services["demo"]["build"]["args"]["TORCH_INDEX"] == "${TORCH_INDEX:-cpu}"
    assert services["scorer-gpu"]["build"]["args"]["TORCH_INDEX"] == "${TORCH_INDEX_GPU:-default}"
    assert "!deploy/install_torch.py" in (ROOT / ".dockerignore").read_text().splitlines()
    for image in ("scorer", "trainer"):
        dockerfile = (ROOT / f"deploy/Dockerfile.{image}").read_text()
        assert "ARG TORCH_INDEX=cpu\n" in dockerfile
        assert 'install_torch.py "$TORCH_INDEX" "$TORCH"' in dockerfile
