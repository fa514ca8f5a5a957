"""docs/at-scale.md: tables are those that its command prints, ratios those of the pages that measured them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/at-scale.md").read_text()
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


def ran(*options):
    return subprocess.run(
        [sys.executable, "tests/bench/at_scale.py", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_tables_are_what_the_command_of_the_page_prints():
    command = next(line for line in PAGE.splitlines() if line.startswith("    python tests/bench/at_scale.py"))
    done = ran(*shlex.split(command)[2:])
    assert done.returncode == 0, done.stderr
    assert done.stdout == ran().stdout  # the example is the default
    tables = TABLE.findall(done.stdout)
    assert len(tables) == 6
    for table in tables:
        assert table in PAGE
    for count in re.findall(r"[\d,]{9,}", done.stdout.splitlines()[0]):
        assert count in PAGE


def column(page, heading, row, at):
    """A figure of another page: of the row that begins so, below a heading."""
    text = (ROOT / "docs" / page).read_text()
    text = text[text.index(f"\n{heading}\n") :]
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} |"))
    return float(line.split("|")[at].strip().rstrip("x"))


def test_the_ratios_are_those_that_were_measured():
    forward = {way: column("forward.md", "### What it costs", way, 3) for way in ("one-sided", "central", "forward-ad")}
    captured = column("benchmarks-sketch.md", "## Speed", "capture, 26M parameters, 4 problems x 512 tokens", 4)
    each = column("benchmarks-sketch.md", "## Under FSDP2", "`from_grads()`, one backward a problem", 3)
    told = [forward["one-sided"], f"{forward['central']} / 2", f"{forward['forward-ad']} / 3", captured, each]
    assert "| " + " | ".join(map(str, told)) + " | not measured: 1 |" in PAGE
    source = (ROOT / "tests/bench/at_scale.py").read_text()
    line = re.search(r"^MEASURED.*$", source, re.MULTILINE)[0]
    assert re.findall(r": ([\d. /]+)", line.partition("{")[2]) == [str(value) for value in told]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--shape", "layers"], "argument --shape: 'layers' is no pair; expected NAME=NUMBER, such as layers=28"),
        (["--shape", "depth=3"], "'depth' is no part of a shape; expected one of layers, hidden,"),
        (["--shape", "layers=many"], "'many' is no count; expected a whole number of at least 1"),
        (["--gpus", "0"], "argument --gpus: '0' is no count; expected a whole number of at least 1"),
    ],
)
def test_what_cannot_be_read_is_named(options, told):
    done = ran(*options)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_another_cluster_gives_other_figures():
    halved = TABLE.findall(ran("--gpus", "16", "--at-once", "4").stdout)
    assert halved[0] in PAGE  # compute is the same
    assert halved[1] not in PAGE
