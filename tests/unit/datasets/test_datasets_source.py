"""Sources as settings write them: strings, tables and lists, and what is wrong with others."""

import pytest

from gradalign_trainer.datasets import DataSource, parse_sources
from gradalign_trainer.datasets.sources.source import KINDS
from gradalign_trainer.settings import SettingsError


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("a/b.jsonl", DataSource(kind="jsonl", path="a/b.jsonl")),
        ("a/*.ndjson", DataSource(kind="jsonl", path="a/*.ndjson")),
        ("b.parquet", DataSource(kind="parquet", path="b.parquet")),
        ("jsonl:shards", DataSource(kind="jsonl", path="shards")),
        ("parquet:odd:name", DataSource(kind="parquet", path="odd:name")),
        ("huggingface:openai/gsm8k", DataSource(kind="huggingface", path="openai/gsm8k")),
        ("reasoning_gym:chain_sum", DataSource(kind="reasoning_gym", task="chain_sum")),
        ("arithmetic:clean/pool", DataSource(kind="arithmetic", task="clean/pool")),
        ("world:my/folder/coin/pool", DataSource(kind="world", path="my/folder", task="coin/pool")),
        ({"path": "a.jsonl", "limit": 3}, DataSource(kind="jsonl", path="a.jsonl", limit=3)),
        ({"path": "a.parquet"}, DataSource(kind="parquet", path="a.parquet")),
        (
            {"kind": "huggingface", "path": "x/y", "subset": "main", "split": "test", "fields": {"prompt": "q"}},
            DataSource(kind="huggingface", path="x/y", subset="main", split="test", fields={"prompt": "q"}),
        ),
        (DataSource(kind="jsonl", path="a"), DataSource(kind="jsonl", path="a")),
    ],
)
def test_a_source_is_a_string_or_a_table(spec, source):
    assert parse_sources(spec) == (source,)


def test_a_list_is_taken_in_order_and_may_nest():
    paths = [source.path for source in parse_sources(["a.jsonl", ["b.jsonl", {"path": "c.parquet"}]])]
    assert paths == ["a.jsonl", "b.jsonl", "c.parquet"]


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("data/train.csv", "source 'data/train.csv' is of no known kind; expected KIND:REST with KIND one of jsonl,"),
        ("huggingfce:x/y", "source 'huggingfce:x/y' is of no known kind (did you mean 'huggingface'?); expected KIND:REST"),
        ("jsonl:", "path is missing for kind 'jsonl'; expected for example 'data/train.jsonl'."),
        ("reasoning_gym:", "task is missing for kind 'reasoning_gym'; expected for example 'chain_sum'."),
        ("arithmetic:", "task is missing for kind 'arithmetic'; expected for example 'clean/pool'."),
        ("world:smollm2", "task is missing for kind 'world'; expected for example 'clean/pool'."),
        ("world:", "path is missing for kind 'world'; expected for example 'smollm2'."),
        ({"kind": "world", "path": "smollm2"}, "task is missing for kind 'world'; expected for example 'clean/pool'."),
        ([], "an empty list of sources; expected at least one"),
        (5, "source 5 is of type int; expected a string or a table."),
        (["a.jsonl", None], "source None is of type NoneType; expected a string or a table."),
        ({"kind": "json", "path": "a"}, "kind = 'json'; expected one of jsonl, parquet"),
        ({"path": "a.csv"}, "kind = None; expected one of jsonl"),
        ({"kind": 5}, "kind = 5; expected one of jsonl"),
        ({"path": "a.jsonl", "limt": 1}, "key 'limt' is unknown for kind 'jsonl'; expected any of bad_records, duplicates,"),
        ({"path": "a.jsonl", "split": "x"}, "key 'split' does not apply to kind 'jsonl'; expected any of bad_records,"),
        ({"path": "a.jsonl", "limit": 0}, "limit = 0 (an integer): expected a value at least 1."),
        ({"path": "a.jsonl", "bad_records": "drop"}, "bad_records = 'drop' (a string): expected one of refuse, skip"),
        ({"path": "a.jsonl", "fields": {"promt": "q"}}, "fields has key 'promt'; expected our names, problem_id, prompt,"),
        ({"path": "a.jsonl", "fields": {"prompt": 5}}, "fields.prompt = 5; expected the record's name for it, a string."),
        (
            {"kind": "reasoning_gym", "task": "chain_sum", "config": {"seed": 3}},
            "config has key 'seed'; expected seed beside config, as a key of the source itself.",
        ),
        (
            {"kind": "reasoning_gym", "task": "chain_sum", "config": {"names": {"a", "b"}}},
            "config = {'names': {",
        ),
    ],
)  # fmt: skip
def test_what_is_no_source_is_refused_with_what_would_be(spec, fault):
    with pytest.raises(SettingsError) as caught:
        parse_sources(spec)
    (said,) = caught.value.faults
    assert said.startswith(fault)


def test_all_values_of_a_table_are_checked_at_once():
    with pytest.raises(SettingsError) as caught:
        parse_sources({"kind": "reasoning_gym", "task": "chain_sum", "size": 0, "seed": -1, "config": []})
    assert [fault.split(" =")[0] for fault in caught.value.faults] == ["size", "seed", "config"]


def test_every_kind_names_keys_that_exist():
    known = set(DataSource.__dataclass_fields__)
    assert all(keys <= known for keys in KINDS.values())
