"""Where problems come from, as settings: `kind:rest` strings and tables.

"arithmetic:imbalance/pool"                    "reasoning_gym:chain_sum"
"data/train.jsonl"  (or .jsonl.gz)             "huggingface:openai/gsm8k"
{ kind = "world", path = "smollm2", task = "coin/pool" }     "world:smollm2/coin/pool"
{ kind = "reasoning_gym", task = "chain_sum", size = 2000, seed = 7, config = { max_terms = 4 } }
{ kind = "huggingface", path = "openai/gsm8k", subset = "main", fields = { prompt = "question" } }
[ { kind = "jsonl", path = "hard.jsonl" }, { kind = "jsonl", path = "easy.jsonl", limit = 500 } ]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from gradalign.wire.checks import shown
from gradalign_trainer.settings import SettingsError, check_settings, limits, nearest

__all__ = ["KINDS", "DataSource", "DataSpec", "parse_sources"]

_COMMON = {"kind", "limit"}
_READ = _COMMON | {"path", "fields", "bad_records", "duplicates"}
KINDS: Mapping[str, frozenset[str]] = {
    "jsonl": frozenset(_READ),
    "parquet": frozenset(_READ),
    "huggingface": frozenset(_READ | {"subset", "split"}),
    "reasoning_gym": frozenset(_COMMON | {"task", "size", "seed", "config"}),
    "arithmetic": frozenset(_COMMON | {"task", "seed"}),
    "world": frozenset(_COMMON | {"path", "task", "seed"}),
}
"""Kind of source -> the keys that apply to it."""

_EXAMPLES = {
    ("reasoning_gym", "task"): "chain_sum",
    ("arithmetic", "task"): "clean/pool",
    ("world", "path"): "smollm2",
    ("world", "task"): "clean/pool",
}
_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_PACKED = {
    f"{suffix}{end}": "jsonl" for suffix in (".jsonl", ".ndjson", ".json", "") for end in (".gz", ".zst")
}  # of JSON lines alone; Parquet compresses by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """One source of problems; which keys apply depends on the kind, see `KINDS`.

    Attributes:
        kind: `jsonl`, `parquet`, `huggingface`, `reasoning_gym`, `arithmetic` or `world`.
        path: a file, a folder of shards or a glob; for `huggingface` a local folder or a hub id. Relative to the
            folder the command runs in. For `world` a name or a folder with a `world.toml`.
        task: name of a `reasoning_gym` task; for `arithmetic` and `world`,
            `REGIME/PART`: `imbalance/pool`.
        subset: configuration of a Hugging Face dataset; empty for its only one.
        split: split of a Hugging Face dataset.
        size: problems that a `reasoning_gym` task generates.
        seed: of generated problems. None takes the run's; for `reasoning_gym` mixed with the part it is for, so that
            pool, validation and held-out problems differ.
        limit: first problems to take; None for all.
        fields: our name -> the record's: `{ prompt = "question", answer = "solution" }`; dots reach into records.
        config: keyword arguments of a `reasoning_gym` task, but for its size and seed, which stand beside.
        bad_records: `refuse` raises where a record does not fit the schema; `skip` leaves it out, and reports it.
        duplicates: `refuse` raises where a problem repeats the id or the content of an earlier one; `drop` keeps the first
            of each, and says how many it dropped.
    """

    kind: str = field(metadata=limits(choices=tuple(KINDS)))
    path: str = ""
    task: str = ""
    subset: str = ""
    split: str = "train"
    size: int = field(default=1000, metadata=limits(low=1))
    seed: int | None = field(default=None, metadata=limits(low=0, high=2**31 - 1))
    limit: int | None = field(default=None, metadata=limits(low=1))
    fields: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    bad_records: str = field(default="refuse", metadata=limits(choices=("refuse", "skip")))
    duplicates: str = field(default="refuse", metadata=limits(choices=("refuse", "drop")))

    def __post_init__(self) -> None:
        check_settings(self)
        faults = [fault for fault in (self._missing(), self._bad_fields(), self._bad_config()) if fault]
        if faults:
            raise SettingsError(faults)

    def _missing(self) -> str | None:
        wanted = [name for name in ("path", "task") if name in KINDS[self.kind] and not getattr(self, name)]
        if not wanted:
            return None
        example = _EXAMPLES.get((self.kind, wanted[0]), "data/train.jsonl")
        return f"{wanted[0]} is missing for kind {self.kind!r}; expected for example {example!r}."

    def _bad_fields(self) -> str | None:
        ours = ("problem_id", "prompt", "answer", "source")
        for name, theirs in self.fields.items():
            if name not in ours:
                return f"fields has key {name!r}; expected our names, {', '.join(ours)}{nearest(name, ours)}."
            if not isinstance(theirs, str) or not theirs:
                return f"fields.{name} = {shown(theirs)}; expected the record's name for it, a string."
        return None

    def _bad_config(self) -> str | None:
        beside = next((key for key in ("size", "seed") if key in self.config), None)
        if beside:
            return f"config has key {beside!r}; expected {beside} beside config, as a key of the source itself."
        try:
            json.dumps(dict(self.config))
        except (TypeError, ValueError):
            return f"config = {shown(self.config)}; expected what JSON can write: no dates, and no keys but strings."
        return None


DataSpec: TypeAlias = str | DataSource | Mapping[str, Any] | Sequence[Any]
"""A source as settings write it: a `kind:rest` string or path, a table, a `DataSource`, or a list of these."""


def parse_sources(spec: DataSpec) -> tuple[DataSource, ...]:
    """The sources of a specification, in order.

    Raises:
        SettingsError: no string or table, unknown kind or key, a key that does not apply to its kind, a value out of range.
    """
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        if not spec:
            raise SettingsError(['an empty list of sources; expected at least one, for example "data/train.jsonl".'])
        return tuple(source for each in spec for source in parse_sources(each))
    if isinstance(spec, DataSource):
        return (spec,)
    if not isinstance(spec, (str, Mapping)):
        raise SettingsError([f"source {shown(spec)} is of type {type(spec).__name__}; expected a string or a table."])
    return (_from_table(spec) if isinstance(spec, Mapping) else _from_text(spec),)


def _from_text(text: str) -> DataSource:
    kind, colon, rest = text.partition(":")
    by_ending = _kind_by_ending(text)
    if colon and kind == "world":
        path, *task = rest.rsplit("/", 2) if rest.count("/") > 1 else (rest,)
        return _from_table({"kind": kind, "path": path, "task": "/".join(task)})
    if colon and kind in KINDS:
        wanted = "path" if "path" in KINDS[kind] else "task"
        return _from_table({"kind": kind, wanted: rest})
    if by_ending is not None:
        return DataSource(kind=by_ending, path=text)
    raise SettingsError(
        [
            f"source {text!r} is of no known kind{nearest(kind, KINDS)}; expected KIND:REST with KIND one of "
            f"{', '.join(KINDS)}, or a path that ends in {', '.join(_SUFFIXES)}. JSON lines may be compressed: .jsonl.gz, "
            ".jsonl.zst."
        ]
    )


def _kind_by_ending(path: str) -> str | None:
    if path.endswith((".parquet.gz", ".parquet.zst")):
        return None
    return next((kind for suffix, kind in (_SUFFIXES | _PACKED).items() if path.endswith(suffix)), None)


def _from_table(table: Mapping[str, Any]) -> DataSource:
    kind = table.get("kind")
    if kind is None and isinstance(table.get("path"), str):
        kind = _kind_by_ending(table["path"])
    if not isinstance(kind, str) or kind not in KINDS:
        raise SettingsError([f"kind = {shown(kind)}; expected one of {', '.join(KINDS)}{nearest(str(kind), KINDS)}."])
    known = [each.name for each in fields(DataSource)]
    strange = [key for key in table if key not in KINDS[kind]]
    if strange:
        does_not = "does not apply to" if strange[0] in known else "is unknown for"
        valid = sorted(KINDS[kind])
        raise SettingsError(
            [
                f"key {strange[0]!r} {does_not} kind {kind!r}; expected any of {', '.join(valid)}"
                f"{nearest(strange[0], valid)}."
            ]
        )
    return DataSource(**{**table, "kind": kind})
