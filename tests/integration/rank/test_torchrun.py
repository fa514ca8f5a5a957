"""`gradalign rank` under torchrun: its ranks give the files of one process to the byte, also after one was killed.

Where one rank is enough, it is this process, with the environment that torchrun gives.
"""

import json
import os
import signal
import sys

import pytest
from responsefiles import problems, read_jsonl, responses, save_files, write_jsonl, write_list
from sharedkit import command, contents, processes_called, said, same_files, started, torchrun, wait_for_shards

from gradalign.cli import main

GROUPS, SAMPLES = 25, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = save_files(tmp_path_factory.mktemp("torchrun"), GROUPS, SAMPLES)
    lines = write_jsonl(folder / "train.jsonl", responses(GROUPS, SAMPLES, seed=3)[::-1]).read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join([*lines[:9], "[1]", *lines[9:]]))
    write_jsonl(folder / "problems.jsonl", problems(GROUPS - 2))
    write_list(folder / "long.json", responses(150, 8, seed=5))
    return folder


@pytest.fixture
def only_rank(monkeypatch):
    """This process as the only rank of a torchrun."""
    given = {"TORCHELASTIC_RUN_ID": "run", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    for name, value in {**given, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_two_ranks_write_the_files_of_one_process(files, scorer, tmp_path, capfd):
    chosen = ("--select", "4", "--problems", str(files / "problems.jsonl"), "--url", scorer.url)
    assert main(command(files, tmp_path / "one/s.jsonl", *chosen, train="train.jsonl")) == 0
    printed = " ".join(capfd.readouterr().out.split()).partition(" wrote ")[0]
    shared = command(files, tmp_path / "two/s.jsonl", *chosen, "--groups-per-task", "3", train="train.jsonl")
    told = said(started(shared, *torchrun(2)))
    assert printed in told  # counts, coherence, reliability, Spearman
    assert told.count("left out 1 of 101 records") == 1
    bad = read_jsonl(tmp_path / "two/bad_records.jsonl")
    assert [record["place"] for record in bad] == [f"{files / 'train.jsonl'}:10"]
    (tmp_path / "two/bad_records.jsonl").unlink()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    "flags",
    [
        ("--exact", "--mini-batch", "3", "--ranks", "2"),
        ("--exact", "--strategy", "learnalign"),
        ("--strategy", "cosine_accuracy", "--max-length", "24"),
    ],
)
def test_one_rank_writes_the_files_of_the_plain_command(files, scorer, tmp_path, capfd, request, flags):
    given = ("--url", scorer.url, "--groups-per-task", "7", *flags)
    assert main(command(files, tmp_path / "plain/s.jsonl", *given)) == 0
    plain = capfd.readouterr()
    request.getfixturevalue("only_rank")
    assert main(command(files, tmp_path / "shared/s.jsonl", *given)) == 0
    shared = capfd.readouterr()
    assert shared.out.replace("shared", "plain") == plain.out
    assert ("were cut there" in shared.err) == ("were cut there" in plain.err)
    assert same_files(tmp_path / "plain", tmp_path / "shared")


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_rank_costs_its_batch(files, scorer, tmp_path, capfd):
    flags = ("--exact", "--url", scorer.url)
    assert main(command(files, tmp_path / "one/s.jsonl", *flags, train="long.json")) == 0
    shared = command(files, tmp_path / "two/s.jsonl", *flags, "--groups-per-task", "2", train="long.json")
    process = started(shared, *torchrun(2))
    wait_for_shards(process, tmp_path / "two/s.jsonl", 3)
    ranks = [each for each in processes_called("", process.pid) if "--groups-per-task" in each.cmdline()]
    os.kill(ranks[-1].pid, signal.SIGKILL)
    process.communicate(timeout=500)
    assert process.returncode != 0
    assert not (tmp_path / "two/s.jsonl").exists()
    capfd.readouterr()
    told = said(started([*shared, "--resume"], *torchrun(2)))
    measured = int(told.partition(" gradients taken now")[0].split()[-1])
    assert 0 < measured <= 150 - 2 * 3
    assert same_files(tmp_path / "one", tmp_path / "two")


def test_settings_of_one_way_to_share_are_refused_elsewhere(files, tmp_path, capsys, monkeypatch):
    assert main(command(files, tmp_path / "s.jsonl", "--workers", "2")) == 2
    assert "--workers was given without --ray" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")  # as torchrun sets it
    assert main(command(files, tmp_path / "s.jsonl", "--ray")) == 2
    assert "--ray was given under torchrun" in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # an import of it fails then, also where it is installed
    assert main(command(files, tmp_path / "s.jsonl", "--ray")) == 2
    assert "pip install 'gradalign[ray]'" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "nowhere"), "--model nowhere cannot be loaded"),
        (("--train", "nowhere.jsonl"), "nowhere.jsonl is no file"),
    ],
)
def test_a_ranking_that_cannot_begin_leaves_nothing(files, only_rank, tmp_path, capsys, flags, words):
    assert main(command(files, tmp_path / "s.jsonl", *flags)) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_a_strategy_cannot_rank_is_refused_at_once(files, only_rank, tmp_path, capsys):
    write_jsonl(files / "many.jsonl", responses(2100, 1, seed=5))
    flags = ("--strategy", "learnalign")
    assert main(command(files, tmp_path / "s.jsonl", *flags, train="many.jsonl")) == 2
    assert "--strategy learnalign compares candidates with one another, at most 2048" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_urls_are_read_by_the_plain_command_too(files, scorer, tmp_path):
    flags = ("--url", scorer.url)
    assert main(command(files, tmp_path / "path", *flags, train="train.jsonl")) == 0
    url = f"file://{files / 'train.jsonl'}"
    by_url = [
        url if each == str(files / "train.jsonl") else each
        for each in command(files, tmp_path / "url", *flags, train="train.jsonl")
    ]
    assert main(by_url) == 0
    assert (tmp_path / "url").read_bytes() == (tmp_path / "path").read_bytes()
    assert json.loads((tmp_path / "url").read_text().splitlines()[0])["group_id"] == 0
