"""docs/adapters.md: its commands run as printed, and what it names exists."""

import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
from pageblocks import blocks_of
from responsefiles import read_jsonl

from gradalign_trainer.adapters.verl.settings import PREFIX, VerlSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/adapters.md").read_text()


def test_files_in_files_out_as_printed(base, tmp_path):
    code = blocks_of(PAGE, "sh")[0].code
    assert ".venv/bin/gradalign rank" in code
    code = code.replace(".venv/bin/python", shlex.quote(sys.executable)).replace("--select 32", "--select 3")
    code = code.replace(".venv/bin/gradalign", f"{shlex.quote(sys.executable)} -m gradalign")
    # Of 1,024 trusted responses one in forty earns the reward: none does with a chance of e^-26.
    code = code.replace(
        "rank_files.py runs/rank", f"rank_files.py runs/rank --model {base} --candidates 12 --trusted 64 --responses 16"
    )
    done = subprocess.run(
        ["sh", "-ec", code.replace("runs/rank", str(tmp_path))], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "3 problems selected" in done.stdout
    assert len(read_jsonl(tmp_path / "similarity.jsonl")) == 12
    assert len(read_jsonl(tmp_path / "selected/train.jsonl")) == 3


def test_every_setting_of_verl_is_named_with_its_default():
    listed = PAGE[PAGE.index(f"each `{PREFIX}`") : PAGE.index("- **Trusted problems**")]
    defaults = VerlSettings(url="u", run_id="r")
    for name in VerlSettings.__slots__:
        if name in ("url", "run_id"):
            assert f"{PREFIX}{name.upper()}=" in PAGE
        else:
            assert f"`{name.upper()}`" in listed
    for name, value in re.findall(r"`([A-Z_]+)` \((?:steps [a-z ]+, )?([\w.]+)", listed):
        assert str(getattr(defaults, name.lower())).removesuffix(".0") == value, name


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(services/trainer/[\w/]+\.(?:py|toml))", PAGE))))
def test_files_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize(
    "flag", sorted(set(re.findall(r"`(--[a-z_-]+)", PAGE)) - {"--minibatch_size", "--nproc-per-node"})
)
def test_flags_exist(flag):
    from gradalign_trainer.rank.command import RankCommand

    parser = ArgumentParser()
    RankCommand().configure(parser)
    assert flag in parser._option_string_actions
