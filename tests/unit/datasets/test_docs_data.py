"""Every example of docs/data.md does what the page says."""

import doctest
import hashlib
import importlib
import re
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from gradalign_trainer.config.files import load_config
from gradalign_trainer.datasets import load_problems, parse_sources, write_parquet
from gradalign_trainer.datasets.sources.source import KINDS
from gradalign_trainer.rewards.registry import reward_names
from gradalign_trainer.worlds.regimes import REGIMES

PAGE = (Path(__file__).parents[3] / "docs/data.md").read_text()
BLOCKS = re.findall(r"^```(\S+)(?: (\S+))?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def blocks(kind):
    return [text for found, _, text in BLOCKS if found == kind]


def rows(heading):
    """The rows of the table whose first column has this heading, as lists of cells."""
    table = PAGE.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def code(cell):
    return re.findall(r"`(.*?)`", cell)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the page shows, in the folder that the examples run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for _, name, text in BLOCKS:
        if name:
            Path(name).write_text(text)
    write_parquet(load_problems("verl.jsonl").problems, "verl.parquet")
    Path("shards").mkdir()
    for number in (1, 2):
        Path(f"shards/{'ab'[number - 1]}.jsonl").write_text(f'{{"id": {number}, "prompt": "p", "answer": "a"}}\n')
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("my_rewards", None)


def test_the_page_has_examples_of_each_kind():
    assert {kind for kind, _, _ in BLOCKS} == {"toml", "jsonl", "pycon", "python"}
    assert PAGE.count("```") == 2 * len(BLOCKS)


def test_sessions_print_what_the_page_shows(folder):
    example = doctest.DocTestParser().get_doctest("\n".join(blocks("pycon")), {}, "data.md", None, None)
    said = []
    result = doctest.DocTestRunner().run(example, out=said.append)
    assert result.attempted >= 9
    assert not result.failed, "".join(said)


@pytest.mark.parametrize("text", blocks("toml"))
def test_settings_are_valid(folder, text):
    Path("run.toml").write_text(f'run_id = "r"\noutput = "o"\nstrategy = "random"\n{text}')
    config = load_config("run.toml", environ={})
    for part, spec in tomllib.loads(text)["data"].items():
        assert parse_sources(getattr(config, part)) == parse_sources(spec)


@pytest.mark.parametrize("text", blocks("toml"))
def test_sources_that_need_no_hub_can_be_read(folder, text):
    for spec in tomllib.loads(text)["data"].values():
        for source in parse_sources(spec):
            installed = source.kind != "reasoning_gym" or find_spec("reasoning_gym") is not None
            if source.kind != "huggingface" and installed:
                assert load_problems(source).problems


def test_folders_and_globs_are_read_as_commented(folder):
    assert [problem.problem_id for problem in load_problems("jsonl:shards").problems] == ["1", "2"]
    assert [problem.problem_id for problem in load_problems("shards/b*.jsonl").problems] == ["2"]


def test_the_table_of_kinds_is_whole():
    told = {code(kind)[0]: {*code(keys), "kind", "limit"} for kind, keys, _ in rows("kind")}
    assert told == {kind: set(keys) for kind, keys in KINDS.items()}
    for kind, _, rest in rows("kind"):
        names = code(rest)[0].split("/")
        values = ["something", "clean/pool"][: len(names)]
        (source,) = parse_sources(f"{code(kind)[0]}:{'/'.join(values)}")
        assert [getattr(source, name) for name in names] == values


def test_the_table_of_rewards_is_whole():
    assert [code(name)[0] for name, _ in rows("name")] == list(reward_names())


def test_made_ids_follow_the_rule_of_the_page(folder):
    assert 'SHA-256 of the UTF-8 JSON list `[source, prompt, answer]`, with `", "` between' in PAGE
    text = '["", [["system", "Be brief."], ["user", "1+1="]], "2"]'
    problem_id = f"sha256-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    assert load_problems("sums.jsonl").problems[2].problem_id == problem_id
    assert problem_id in PAGE


def test_the_regimes_are_all_named():
    (sentence,) = re.findall(r"regimes (.*?), parts", PAGE)
    assert set(code(sentence)) == set(REGIMES)


def test_verls_example_reads_as_described(folder):
    (problem,) = load_problems("verl.jsonl").problems
    assert (problem.problem_id, problem.prompt, problem.answer) == ("gsm8k/train/0", "2+3=", "5")
    assert problem.source == "gsm8k"
    assert set(problem.extra) == {"ability", "reward_model", "extra_info", "messages"}
    assert load_problems("verl.parquet").problems == [problem]
