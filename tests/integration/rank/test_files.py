"""`gradalign rank` from files to files: formats, selections, bad records, and a kill in the middle."""

import os
import signal
import subprocess
import sys
import time

import pyarrow
import pytest
from pyarrow import parquet
from responsefiles import problems, read_jsonl, responses, save_files, write_jsonl, write_list

from gradalign.cli import main

GROUPS, SAMPLES = 10, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = save_files(tmp_path_factory.mktemp("rank"), GROUPS, SAMPLES)
    write_jsonl(folder / "problems.jsonl", problems(GROUPS))
    return folder


def command(files, url, out, *flags, train="train.json"):
    return [
        *("rank", "--model", str(files / "model"), "--train", str(files / train), "--out", str(out)),
        *("--device", "cpu", "--dim", "512", *(("--url", url) if url else ()), *flags),
    ]


def validated(files):
    return ("--validation", str(files / "val.json"))


def test_the_selection_is_the_best_in_the_order_of_the_file(files, scorer, tmp_path, capsys):
    chosen = ("--select", "3", "--problems", str(files / "problems.jsonl"), "--exact")
    assert main(command(files, scorer.url, tmp_path / "s.jsonl", *validated(files), *chosen)) == 0
    similarities = read_jsonl(tmp_path / "s.jsonl")
    assert [set(record) for record in similarities] == [{"group_id", "similarity", "loss"}] * GROUPS
    best = sorted(similarities, key=lambda record: -record["similarity"])[:3]
    selected = read_jsonl(tmp_path / "selected/train.jsonl")
    assert [record["extra_info"]["index"] for record in selected] == sorted(record["group_id"] for record in best)
    assert [record for record in problems(GROUPS) if record in selected] == selected
    assert parquet.read_table(tmp_path / "selected/train.parquet").to_pylist() == selected
    accuracy = read_jsonl(tmp_path / "accuracy_by_problem.jsonl")
    assert accuracy[4] == {"group_id": 4, "total": 4, "correct": 4, "accuracy": 1.0, "similarity": 0.0}
    assert not (tmp_path / "s.jsonl.progress").exists()
    assert "3 problems selected" in capsys.readouterr().out


def test_json_lists_jsonl_and_parquet_give_the_same(files, scorer, tmp_path):
    records = responses(GROUPS, SAMPLES, seed=3)
    write_jsonl(files / "train.jsonl", records[::-1])
    parquet.write_table(pyarrow.Table.from_pylist(records), files / "train.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(problems(GROUPS)), files / "problems.parquet")
    selection = ("--select", "3", "--problems", str(files / "problems.parquet"))
    for name in ("train.json", "train.jsonl", "train.parquet"):
        out = tmp_path / name / "s.jsonl"
        assert main(command(files, scorer.url, out, *validated(files), *selection, train=name)) == 0
    found = [read_jsonl(tmp_path / name / "s.jsonl") for name in ("train.json", "train.jsonl", "train.parquet")]
    assert found[0] == found[2]
    assert [r["similarity"] for r in found[0]] == pytest.approx([r["similarity"] for r in found[1]], abs=1e-5)
    assert (
        len({(tmp_path / name / "selected/train.jsonl").read_text() for name in ("train.json", "train.parquet")}) == 1
    )


def test_sketches_may_travel_as_int8(files, scorer, tmp_path):
    for dtype in ("float32", "int8"):
        flags = (*validated(files), "--sketch-dtype", dtype)
        assert main(command(files, scorer.url, tmp_path / dtype, *flags)) == 0
    floats, int8 = (
        {r["group_id"]: r["similarity"] for r in read_jsonl(tmp_path / name)} for name in ("float32", "int8")
    )
    # Of the largest number of a row half a 127th is lost, and the largest of 512 is three times the usual one.
    assert int8 == pytest.approx(floats, abs=2e-2)
    assert int8 != floats


def test_a_group_called_0_0_is_group_0(files, scorer, tmp_path):
    records = responses(GROUPS, SAMPLES, seed=3)
    write_jsonl(files / "floats.jsonl", [{**record, "group_id": float(record["group_id"])} for record in records])
    for name in ("train.json", "floats.jsonl"):
        assert main(command(files, scorer.url, tmp_path / name, *validated(files), train=name)) == 0
    assert (tmp_path / "floats.jsonl").read_text() == (tmp_path / "train.json").read_text()


def test_problems_that_stand_there_twice_are_dropped_where_asked(files, scorer, tmp_path, capfd):
    write_jsonl(files / "twice.jsonl", problems(GROUPS) * 3)
    chosen = ("--select", "3", "--problems", str(files / "twice.jsonl"))
    assert main(command(files, scorer.url, tmp_path / "s.jsonl", *validated(files), *chosen)) == 2
    assert "extra_info.index 0 again; the first is at" in (refused := capfd.readouterr().err)
    assert "--duplicates drop" in " ".join(refused.split())
    flags = (*chosen, "--duplicates", "drop")
    assert main(command(files, scorer.url, tmp_path / "s.jsonl", *validated(files), *flags)) == 0
    assert "dropped 20 of 30 problems" in " ".join(capfd.readouterr().err.split())
    assert len(read_jsonl(tmp_path / "selected/train.jsonl")) == 3


def test_bad_records_are_named_and_counted_and_the_rest_is_ranked(files, scorer, tmp_path, capfd):
    records = responses(GROUPS, SAMPLES, seed=3)
    lines = write_jsonl(tmp_path / "ok.jsonl", records).read_text().splitlines()
    lines[2] = '{"group_id": 0, "prompt": "Q", "respo'
    lines[5] = '{"group_id": 1, "sample_id": 9, "prompt": "Q", "response": "x"}'
    lines[7] = lines[6]
    (files / "bad.jsonl").write_text("\n".join(lines))
    assert main(command(files, scorer.url, tmp_path / "s.jsonl", *validated(files), train="bad.jsonl")) == 0
    printed = capfd.readouterr()
    assert "3 bad records" in printed.out
    assert "left out 3 of 40 records" in printed.err
    for line, words in ((3, "not JSON"), (6, "there is no reward"), (8, "sample_id 2 again")):
        assert f"bad.jsonl:{line}: " in printed.err
        assert words in printed.err
    assert [record["total"] for record in read_jsonl(tmp_path / "accuracy_by_problem.jsonl")][:3] == [3, 2, 4]


def test_a_broken_list_is_read_up_to_its_break(files, scorer, tmp_path, capfd):
    text = (files / "train.json").read_text().splitlines(keepends=True)
    (files / "broken.json").write_text("".join(text[: 1 + 8 * 30 + 3]))
    assert main(command(files, scorer.url, tmp_path / "s.jsonl", *validated(files), train="broken.json")) == 0
    assert f"broken.json:{1 + 8 * 30 + 1}: the JSON list breaks here" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        ('{"group_id": -1}\n{"group_id": 1}\n', (), "none of its 2 records is a scored response"),
        (None, ("--model", "nowhere"), "--model nowhere cannot be loaded"),
        (None, ("--device", "gpu"), "cannot be loaded on --device gpu"),
        (None, ("--out", "."), "--out . is a folder"),
        (None, ("--select", "3"), "--select was given without --problems"),
        (None, ("--select", "3", "--problems", "nowhere.jsonl"), "nowhere.jsonl is no file"),
    ],
)
def test_what_cannot_work_ends_with_a_reason(files, scorer, tmp_path, capsys, content, flags, words):
    if content is not None:
        (files / "none.jsonl").write_text(content)
    train = "train.json" if content is None else "none.jsonl"
    assert main(command(files, scorer.url, tmp_path / "s.jsonl", *validated(files), *flags, train=train)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "s.jsonl").exists()


def test_cosine_wants_validation_and_accgreedy_does_not(files, scorer, tmp_path, capsys):
    assert main(command(files, scorer.url, tmp_path / "s.jsonl")) == 2
    assert "give --validation, or one of norm" in capsys.readouterr().err
    chosen = ("--strategy", "accgreedy", "--select", "2", "--problems", str(files / "problems.jsonl"))
    assert main(command(files, scorer.url, tmp_path / "s.jsonl", *chosen)) == 0
    nearest = sorted(read_jsonl(tmp_path / "accuracy_by_problem.jsonl"), key=lambda r: abs(r["accuracy"] - 0.5))
    selected = {record["extra_info"]["index"] for record in read_jsonl(tmp_path / "selected/train.jsonl")}
    assert selected == {record["group_id"] for record in nearest[:2]}


def test_groups_that_the_problems_lack_are_left_out(files, scorer, tmp_path, capfd):
    write_jsonl(tmp_path / "few.jsonl", problems(GROUPS - 3))
    chosen = ("--select", "2", "--problems", str(tmp_path / "few.jsonl"))
    assert main(command(files, scorer.url, tmp_path / "s.jsonl", *validated(files), *chosen)) == 0
    assert len(read_jsonl(tmp_path / "s.jsonl")) == GROUPS - 3
    assert "left out 3 groups that" in capfd.readouterr().err


def test_killed_and_resumed_it_gives_what_an_unbroken_one_gives(files, scorer, tmp_path, capsys):
    write_list(files / "long.json", responses(60, 8, seed=5))
    flags = ("--exact", *validated(files))
    assert main(command(files, scorer.url, tmp_path / "whole.jsonl", *flags, train="long.json")) == 0
    broken = command(files, scorer.url, tmp_path / "s.jsonl", *flags, train="long.json")
    process = subprocess.Popen([sys.executable, "-m", "gradalign", *broken], stderr=subprocess.DEVNULL)
    lines = tmp_path / "s.jsonl.progress/groups.jsonl"
    deadline = time.monotonic() + 300
    while not lines.exists() or lines.read_text().count("\n") < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = lines.read_text().count("\n")
    with lines.open("a") as file:
        file.write('{"key": "train/59", "lo')  # a write that the kill cut short
    assert main(broken) == 2
    assert f"holds {kept} gradients of an interrupted ranking" in capsys.readouterr().err
    assert main([*broken, "--seed", "1", "--resume"]) == 2
    assert "seed was 0 and is 1" in capsys.readouterr().err
    assert main([*broken, "--resume"]) == 0
    assert 5 <= kept < 61
    assert f"{61 - kept} gradients taken now" in capsys.readouterr().out
    assert (tmp_path / "s.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_without_a_url_it_brings_its_own_scorer(files, scorer, tmp_path):
    for name, url in (("own", None), ("given", scorer.url)):
        assert main(command(files, url, tmp_path / name, *validated(files))) == 0
    assert (tmp_path / "own").read_bytes() == (tmp_path / "given").read_bytes()
