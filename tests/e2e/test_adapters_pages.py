"""The guides by trainer, docs/adapters*.md but TRL's: commands run as printed, and what the pages name exists."""

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
GUIDES = {
    name: (ROOT / f"docs/adapters{name}.md").read_text() for name in ("", "-files", "-others", "-own-loop", "-verl")
}
EVERY_WORD = "\n".join(GUIDES.values())


def test_files_in_files_out_as_printed(base, tmp_path):
    code = blocks_of(GUIDES["-files"], "sh")[0].code
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


def test_the_table_of_verls_settings_is_whole():
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\S+) \|", GUIDES["-verl"], re.MULTILINE)
    defaults = VerlSettings(url="required", run_id="required")
    told = {name.upper(): getattr(defaults, name) for name in VerlSettings.__slots__}
    assert dict(rows) == {name: str(value).removesuffix(".0") or "none" for name, value in told.items()}
    assert f"each `{PREFIX}`" in GUIDES["-verl"]


def test_the_id_of_a_problem_is_made_as_printed():
    code = blocks_of(GUIDES[""], "python")[0].code
    scope = {}
    exec(code, scope)
    call = next(line for line in code.splitlines() if line.startswith("stable_id("))
    assert re.fullmatch("sha256-[0-9a-f]{24}", eval(call, scope))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(services/trainer/[\w/]+\.(?:py|toml))", EVERY_WORD))))
def test_files_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("name", ["own_loop.py", "own_loop_fsdp2.py"])
def test_loops_have_the_lines_that_the_pages_say(name):
    lines = len((ROOT / "services/trainer/examples" / name).read_text().splitlines())
    assert f"{lines} lines to copy" in GUIDES[""]


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`(--[a-z_-]+)", GUIDES["-files"])) - {"--minibatch_size"}))
def test_flags_exist(flag):
    from gradalign_trainer.rank.command import RankCommand

    parser = ArgumentParser()
    RankCommand().configure(parser)
    assert flag in parser._option_string_actions
