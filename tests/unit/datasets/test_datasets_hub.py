"""Hugging Face datasets: read where the library is installed, and a clear word where it is not."""

import importlib.util
import json
import sys

import pytest

from gradalign_trainer.datasets import DataError, load_problems

INSTALLED = importlib.util.find_spec("datasets") is not None
ROWS = [{"question": f"{n}+1=", "answer": str(n + 1)} for n in range(5)]


@pytest.mark.skipif(INSTALLED, reason="the datasets package is installed")
def test_without_the_library_the_extra_is_named():
    with pytest.raises(
        DataError, match=r"'openai/gsm8k' .* needs the package datasets: pip install 'gradalign\[huggingf"
    ):
        load_problems("huggingface:openai/gsm8k")


@pytest.mark.skipif(INSTALLED, reason="the datasets package is installed")
def test_a_folder_of_that_name_is_not_mistaken_for_the_library(tmp_path, monkeypatch):
    (tmp_path / "datasets").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    try:
        with pytest.raises(DataError, match="needs the package datasets"):
            load_problems("huggingface:openai/gsm8k")
    finally:
        sys.modules.pop("datasets", None)


@pytest.fixture
def folder(tmp_path):
    """A local dataset of two splits."""
    pytest.importorskip("datasets", reason="reading needs the datasets package")
    for split, rows in (("train", ROWS), ("test", ROWS[:2])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def source(path, **more):
    return {"kind": "huggingface", "path": str(path), "fields": {"prompt": "question"}} | more


def test_a_folder_of_data_files_is_read_by_split(folder):
    assert [problem.answer for problem in load_problems(source(folder)).problems] == ["1", "2", "3", "4", "5"]
    assert len(load_problems(source(folder, split="test")).problems) == 2
    assert len(load_problems(source(folder, limit=3)).problems) == 3


def test_a_folder_of_save_to_disk_is_read_by_split(folder, tmp_path):
    import datasets

    datasets.load_dataset(str(folder)).save_to_disk(tmp_path / "saved")
    assert len(load_problems(source(tmp_path / "saved", split="test")).problems) == 2
    with pytest.raises(DataError, match=r"no split 'tset'; expected one of train, test \(did you mean 'test'\?\)"):
        load_problems(source(tmp_path / "saved", split="tset"))


def test_a_split_that_is_not_there_is_refused_by_name(folder):
    with pytest.raises(DataError, match=r"\(subset None, split 'nope'\) cannot be loaded"):
        load_problems(source(folder, split="nope"))
