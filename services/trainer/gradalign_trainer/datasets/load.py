"""`load_problems`: the problems of a source or several, checked, with distinct ids."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradalign_trainer.datasets.records.schema import BadRecord, Candidate, DataError, Place, parse_record
from gradalign_trainer.datasets.sources.files import expand, read_jsonl, read_parquet
from gradalign_trainer.datasets.sources.hub import open_dataset, read_dataset
from gradalign_trainer.datasets.sources.reasoning import generate_problems
from gradalign_trainer.datasets.sources.repeats import Repeats
from gradalign_trainer.datasets.sources.source import DataSource, DataSpec, parse_sources
from gradalign_trainer.problems import Problem
from gradalign_trainer.reporting.progress import Advance, TellsProgress, no_progress
from gradalign_trainer.world import World
from gradalign_trainer.worlds.builtin import ArithmeticWorld

__all__ = ["LoadedProblems", "load_problems"]

logger = logging.getLogger(__name__)

SHOWN = 5  # faults that a message spells out
MOST_FAULTS = 1000  # after which reading stops: the file is of another form
PARTS = ("pool", "validation", "heldout")

Read = Iterator[Candidate | BadRecord]


@dataclass(frozen=True, slots=True)
class LoadedProblems:
    """What a source held.

    Attributes:
        problems: in the order of the source, ids distinct.
        bad: records left out, where the source said `bad_records = "skip"`.
        dropped: problems left out that repeat an earlier one, where the source said `duplicates = "drop"`.
    """

    problems: Sequence[Problem]
    bad: Sequence[BadRecord] = ()
    dropped: int = 0


def load_problems(
    spec: DataSpec, *, seed: int = 0, part: str = "pool", progress: TellsProgress = no_progress
) -> LoadedProblems:
    """Read or generate the problems of a specification.

    Files are read as a stream: memory holds the problems, never the file.

    Args:
        spec: a path, a `kind:rest` string, a table, a `DataSource` or a list of these; docs/data.md shows them.
        seed: of the run, for generated problems whose source gives none.
        part: what the problems are for, `pool`, `validation` or `heldout`; keeps generated parts apart.
        progress: told how far the reading is.

    Raises:
        SettingsError: the specification is not valid.
        DataError: a source cannot be read, a record does not fit the schema (unless its source says to skip those), an
            id comes twice, or there is no problem at all.
    """
    candidates: list[Candidate] = []
    bad: list[BadRecord] = []
    repeats = Repeats()
    for source in parse_sources(spec):
        read = list(_limited(repeats.without(_read(source, seed, part, progress), source), source))
        bad += _reported([each for each in read if isinstance(each, BadRecord)], len(read), source)
        candidates += [each for each in read if isinstance(each, Candidate)]
    candidates = repeats.settled(_settle_ids(candidates))
    if not candidates:
        raise DataError(f"there is no problem in {spec!r}; expected at least one. {len(bad)} records were bad.", bad)
    return LoadedProblems([candidate.problem for candidate in candidates], bad, repeats.dropped)


def _limited(read: Read, source: DataSource) -> Read:
    """Stop after `limit` problems, or where nothing good can come any more."""
    good = faults = 0
    for each in read:
        yield each
        good += isinstance(each, Candidate)
        faults += isinstance(each, BadRecord)
        if good == source.limit or (source.bad_records == "refuse" and faults == MOST_FAULTS):
            return


def _reported(bad: list[BadRecord], read: int, source: DataSource) -> list[BadRecord]:
    """The bad records, logged where they may be skipped; `DataError` where not."""
    if not bad:
        return bad
    listing = "".join(f"\n  {each}" for each in bad[:SHOWN]) + (
        f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    )
    if source.bad_records == "skip":
        logger.warning("%s: left out %d of %d records:%s", source.path, len(bad), read, listing)
        return bad
    stopped = ", where reading stopped" if len(bad) == MOST_FAULTS else ""
    raise DataError(
        f"{source.path}: {len(bad)} of {read} records do not fit the schema{stopped}:{listing}\n"
        'Mend them, or leave them out with bad_records = "skip". The schema: docs/data.md.',
        bad,
    )


def _read(source: DataSource, seed: int, part: str, progress: TellsProgress) -> Read:
    if source.kind == "arithmetic":
        return _placed(_of_world(ArithmeticWorld(), source, seed), f"arithmetic:{source.task}")
    if source.kind == "world":
        from gradalign_trainer.worlds.tasks.registry import world_of  # worlds read problems by this package

        return _placed(_of_world(world_of(source.path), source, seed), f"world:{source.path}/{source.task}")
    if source.kind == "reasoning_gym":
        return _generated(source, seed, part, progress)
    return _parsed(source, progress)


def _placed(problems: Iterable[Problem], name: str) -> Iterator[Candidate]:
    for number, problem in enumerate(problems, start=1):
        yield Candidate(problem, Place(name, number, "problem"))


def _of_world(world: World, source: DataSource, seed: int) -> Sequence[Problem]:
    regime, _, part = source.task.partition("/")
    if regime not in world.regimes or part not in PARTS:
        raise DataError(
            f"{world.name} task {source.task!r}; expected REGIME/PART, REGIME one of {', '.join(world.regimes)} and PART "
            f"one of {', '.join(PARTS)}: clean/pool, say."
        )
    parts = world.parts(regime, seed=seed if source.seed is None else source.seed)
    problems: Sequence[Problem] = getattr(parts, part)
    return problems


def _generated(source: DataSource, seed: int, part: str, progress: TellsProgress) -> Iterator[Candidate]:
    mixed = int.from_bytes(hashlib.sha256(f"{seed}/{part}".encode()).digest()[:4], "little") >> 1
    with progress(f"generating {source.task}", min(source.size, source.limit or source.size)) as advance:
        problems = generate_problems(source, mixed if source.seed is None else source.seed, advance)
        yield from _placed(problems, f"reasoning_gym:{source.task}")


def _parsed(source: DataSource, progress: TellsProgress) -> Read:
    total, records = _records(source)
    with progress(f"reading {source.path}", total) as advance:
        for place, record in records(advance):
            yield record if isinstance(record, BadRecord) else parse_record(record, place, source.fields)


def _records(source: DataSource) -> tuple[float, Callable[[Advance], Iterator[tuple[Place, Any]]]]:
    """How much there is to read, and the reading."""
    if source.kind == "huggingface":
        dataset = open_dataset(source)
        return len(dataset), lambda advance: read_dataset(dataset, source, advance)
    read = read_jsonl if source.kind == "jsonl" else read_parquet
    files = expand(source.path, source.kind)
    total = sum(file.stat().st_size for file in files)
    return total, lambda advance: itertools.chain.from_iterable(read(file, advance) for file in files)


def _settle_ids(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Give every problem whose derived id is not its own an id made from the content, whatever the order."""
    uses = Counter(candidate.problem.problem_id for candidate in candidates)

    def settled(candidate: Candidate) -> Candidate:
        problem = candidate.problem
        if not candidate.derived or uses[problem.problem_id] == 1:
            return candidate
        return replace(candidate, problem=replace(problem, problem_id=candidate.content))

    return [settled(candidate) for candidate in candidates]
