"""A world of one's own: a folder with a `world.toml` and files of problems.

    name = "gsm8k"
    model = "Qwen/Qwen2.5-0.5B-Instruct"     # a folder or hub id
    target = "train.jsonl"                   # the first problems are trusted, the others the pool
    heldout = "test.jsonl"
    off_target = ["countdown.jsonl"]         # for the regimes that need other tasks
    verifier = "math_verify"                 # a reward by its name

    [scale]                                  # of `Scale`
    updates = 100

    [settings]                               # of every run
    max_new_tokens = 256

Paths are relative to the folder.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from gradalign_trainer.datasets.records.schema import BadRecord, DataError, parse_record
from gradalign_trainer.datasets.sources.files import expand, read_jsonl
from gradalign_trainer.problems import Problem
from gradalign_trainer.settings import SettingsError, check_settings, nearest, read_toml
from gradalign_trainer.world import Parts, Scale
from gradalign_trainer.worlds.tasks.spoiling import REGIMES, anonymous, spoiled

__all__ = ["FILE", "FolderWorld", "folder_world"]

FILE = "world.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderWorld:
    """The problems of a folder; see `World`.

    Attributes:
        folder: where `world.toml` is.
        name: one noun.
        model: folder or hub id of the base model.
        target: JSONL files of the target task, or folders of them.
        heldout: those that runs are judged by.
        off_target: those of other tasks; the regimes `imbalance` and `low-utility` need some.
        verifier: name of the reward that marks a completion.
        settings: of every run; the reward is `graded`, which asks the verifier.
        scale: how many of everything the methods take.

    Raises:
        SettingsError: a value is not valid; all faults are in it.
    """

    folder: Path
    name: str
    model: str
    target: tuple[str, ...]
    heldout: tuple[str, ...]
    off_target: tuple[str, ...] = ()
    verifier: str = "exact"
    settings: Mapping[str, Any] = field(default_factory=dict)
    scale: Scale = field(default_factory=Scale)

    regimes: ClassVar[Mapping[str, str]] = REGIMES
    headline: ClassVar[Sequence[str]] = ("coin", "inverted")
    any_regime: ClassVar[str] = "clean"
    bases: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_settings(self)
        object.__setattr__(self, "settings", {"reward": "graded", **self.settings})

    @property
    def judged_by(self) -> str:
        """As the settings of the runs have it."""
        return f"evaluation = {self.settings.get('evaluation', 'exact')!r}, all problems of {', '.join(self.heldout)}"

    def parts(self, regime: str, *, seed: int) -> Parts:
        """The target's problems shuffled, spoiled as `spoiling.spoiled` does.

        Raises:
            DataError: a file cannot be read, or there are too few problems.
        """
        rng = random.Random(f"{self.name}/{seed}")
        target, heldout = self._read(self.target), self._read(self.heldout)
        trusted = self.scale.trusted
        if len(target) <= trusted:
            raise DataError(
                f"{', '.join(self.target)} of {self.folder} hold {len(target)} problems, of which scale.trusted = {trusted} "
                "are for the validation; expected more than that. Add problems, or lower it."
            )
        rng.shuffle(target)
        drawn = target[trusted : trusted + self.scale.pool]
        pool = spoiled(regime, drawn, lambda count: self._strangers(count, rng), rng)
        return Parts(pool=pool, validation=target[:trusted], heldout=heldout)

    def source(self, regime: str, part: str, limit: int | None = None) -> Mapping[str, Any]:
        """A source of kind `world`."""
        limited = {} if limit is None else {"limit": limit}
        return {"kind": "world", "path": str(self.folder), "task": f"{regime}/{part}", **limited}

    def base_facts(self, seed: int) -> Mapping[str, Any]:  # noqa: ARG002
        """The model as `world.toml` names it, and a digest of the problems, which are the user's to change."""
        files = self._files((*self.target, *self.heldout, *self.off_target))
        return {"model": self.model, "problems": _digest(tuple((file, file.stat().st_mtime_ns) for file in files))}

    def base(self, cache: Path, seed: int) -> Path:  # noqa: ARG002
        """The folder of the model where it is one, else its hub id."""
        within = self.folder / self.model
        return within if within.is_dir() else Path(self.model)

    def _files(self, names: Sequence[str]) -> list[Path]:
        return [file for name in names for file in expand(str(self.folder / name), "jsonl")]

    def _read(self, names: Sequence[str]) -> list[Problem]:
        """Distinct problems by their prompts, in the order of the files."""
        found: dict[str, Problem] = {}
        records = itertools.chain.from_iterable(read_jsonl(file, lambda done: None) for file in self._files(names))  # noqa: ARG005
        for place, record in records:
            parsed = record if isinstance(record, BadRecord) else parse_record(record, place, {})
            if isinstance(parsed, BadRecord):
                raise DataError(f"{parsed} Mend it. The schema: docs/data.md.", [parsed])
            problem = anonymous(parsed.problem, verifier=self.verifier, grader="honest", good=True)
            found.setdefault(problem.problem_id, problem)
        return list(found.values())

    def _strangers(self, count: int, rng: random.Random) -> list[Problem]:
        others = self._read(self.off_target) if self.off_target else []
        if len(others) < count:
            raise DataError(
                f"{self.folder / FILE} names off_target = {list(self.off_target)}, which hold {len(others)} problems; this "
                f"regime needs {count} of other tasks. Add files, or play other regimes."
            )
        return rng.sample(others, count)


@lru_cache
def _digest(files: tuple[tuple[Path, int], ...]) -> str:
    """Of the bytes of files, with their times of change, since every cell of a grid asks for it."""
    digest = hashlib.sha256()
    for file, _ in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def folder_world(folder: Path) -> FolderWorld:
    """The world of a folder.

    Raises:
        SettingsError: its `world.toml` cannot be read, has an unknown key or lacks one, or a value is not valid.
    """
    path = folder / FILE
    table = read_toml(path)
    faults = [*_strange(table, FolderWorld, "", {"folder"}), *_strange(table.get("scale", {}), Scale, "scale.", set())]
    faults += [f"{key} is missing; see {FILE} in docs/smollm2.md." for key in _NEEDED if key not in table]
    if faults:
        raise SettingsError(faults, where=str(path))
    for key in ("target", "heldout", "off_target"):
        if key in table:
            table[key] = (table[key],) if isinstance(table[key], str) else tuple(table[key])
    scale = {**_PAPER_SCALE, **table.pop("scale", {})}
    return FolderWorld(folder=folder.resolve(), scale=Scale(**scale), **table)


_NEEDED = ("name", "model", "target", "heldout")
_PAPER_SCALE: Mapping[str, Any] = {"batch": 64, "candidates": 512, "updates": 100, "evaluations": 5, "trusted": 64}
"""64 problems of 8 rollouts in each of 100 updates, chosen from eight times as many."""


def _strange(table: Mapping[str, Any], kind: type, prefix: str, reserved: set[str]) -> list[str]:
    known = {each.name for each in fields(kind)} - reserved
    return [
        f"{prefix}{key} is no key{nearest(key, known)}; expected {', '.join(sorted(known))}."
        for key in table
        if key not in known
    ]
