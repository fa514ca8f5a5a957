"""`run_shared`: from files to files, by many workers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from gradalign.wire.projection import Projection
from gradalign_trainer.rank.distributed.merging import Measured, ask_scorer, exact_spearman, write_groups
from gradalign_trainer.rank.distributed.pool import Pool
from gradalign_trainer.rank.distributed.shards import Batch, Pooled, Shard, ShardLedger
from gradalign_trainer.rank.steps.measure import warn_of_cut
from gradalign_trainer.rank.steps.opening import open_problems, open_responses, open_scorer, warn_of_bad
from gradalign_trainer.rank.steps.outputs import ProblemFile, read_problem_file, write_selected
from gradalign_trainer.rank.steps.report import RankReport
from gradalign_trainer.rank.steps.responses import ResponseFile, ResponseGroup
from gradalign_trainer.rank.steps.scoring import Scored
from gradalign_trainer.rank.steps.settings import RankSettings, digest
from gradalign_trainer.reporting.progress import TellsProgress, no_progress

__all__ = ["Workers", "run_shared"]

SHOWN = 10
LOOK = 2048  # groups that are looked through at once
logger = logging.getLogger(__name__)


class Workers(Protocol):
    """Those who measure, `RayWorkers` or `Ranks`: a context manager, which all processes of the ranking enter.

    Attributes:
        rank: of this process; 0 does what is done once.
        restarted: whether they go on after a death, as with `--resume`.
    """

    rank: int
    restarted: bool

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""

    def meet(self) -> None:
        """Wait until all processes are here."""

    def share(self, numbers: Sequence[int] | None) -> Sequence[int]:
        """This process's part of what rank 0 gives; the others give None."""

    def projection(self) -> Projection:
        """How sketches are made; waits until a policy is loaded."""

    def pooled(self, groups: Sequence[ResponseGroup]) -> tuple[Pooled, bytes]:
        """What is kept of the full gradient of all groups together, and that gradient as bytes."""

    def hold(self, gradient: bytes) -> None:
        """Take exact products with this full gradient from here on."""

    def measure(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Shard, list[str]]]:
        """What batches give, with why some groups count as no signal, as they are done."""

    def release(self) -> None:
        """Let go of what only measuring needs."""


@dataclass(frozen=True, slots=True)
class _Opened:
    pool: Pool
    validation: ResponseFile | None
    problems: ProblemFile | None


def run_shared(
    settings: RankSettings, workers: Workers, *, groups_per_task: int, progress: TellsProgress = no_progress
) -> RankReport | None:
    """Read the files, have the gradients taken, ask the scorer, write the files; None on ranks but the first.

    Args:
        settings: of the ranking.
        workers: that measure.
        groups_per_task: problems that a worker takes at once.
        progress: told how far it is.

    Raises:
        GradAlignError: files, settings, workers or scorer do not fit.
    """
    folder = settings.out.with_name(f"{settings.out.name}.shards")
    ledger = ShardLedger(folder, groups_per_task)
    told = progress if workers.rank == 0 else no_progress
    if workers.rank == 0:
        resume = settings.resume or workers.restarted
        ShardLedger.begin(folder, _state(settings), groups_per_task, resume=resume)
    with workers:
        opened = _open(settings, ledger, told) if workers.rank == 0 else None
        workers.meet()
        opened = opened or _open(settings, ledger, told)
        projection = workers.projection()
        _take_pooled(settings, workers, ledger, opened)
        before = _measure(settings, workers, ledger, opened, told)
        workers.release()
        report = _finish(settings, ledger, opened, projection, before, told) if workers.rank == 0 else None
    return report


def _state(settings: RankSettings) -> dict[str, Any]:
    problems = None if settings.problems is None else digest(settings.problems)
    return {**settings.measured(), "problems": problems, "duplicates": settings.duplicates, "threads": settings.threads}


def _open(settings: RankSettings, ledger: ShardLedger, progress: TellsProgress) -> _Opened:
    validation = None if settings.validation is None else open_responses(settings.validation, progress)
    problems = None
    if settings.problems is not None:
        problems = open_problems(settings.problems, settings.duplicates, keep=())
    known = None if problems is None else problems.records
    pool = Pool(ledger.folder / "pool.sqlite", settings.train, known, progress)
    if pool.bad:
        first = [bad for bad, _ in zip(pool.bad_records(), range(SHOWN), strict=False)]
        warn_of_bad(settings.train, first, pool.bad, pool.records)
    if problems is not None and pool.left_out:
        if not len(pool):
            problems.check(pool.ids())
        logger.warning("%s: left out %d groups that %s does not have.", settings.train, pool.left_out, problems.path)
    return _Opened(pool, validation, problems)


def _take_pooled(settings: RankSettings, workers: Workers, ledger: ShardLedger, opened: _Opened) -> None:
    if settings.against is None:
        return
    if workers.rank == 0 and ledger.pooled() is None:
        of_train = settings.against == settings.train or opened.validation is None
        groups = opened.pool.groups(0, len(opened.pool)) if of_train else opened.validation.groups
        ledger.keep_pooled(*workers.pooled(groups))
    workers.meet()
    workers.hold(ledger.gradient())


def _measure(
    settings: RankSettings, workers: Workers, ledger: ShardLedger, opened: _Opened, progress: TellsProgress
) -> int:
    """Measure what is missing; how many groups were there before."""
    there = 0
    for part, count in (("validation", _trusted(settings, opened)), ("train", len(opened.pool))):
        if not count:
            continue
        mine = workers.share(ledger.missing(part, count) if workers.rank == 0 else None)
        todo = sum(min(count, (number + 1) * ledger.size) - number * ledger.size for number in mine)
        there += count - todo
        batches = (_batch(settings, ledger, opened, part, number) for number in mine)
        with progress(f"{part} gradients", todo) as advance:
            for batch, shard, faults in workers.measure(batches):
                for fault in faults:
                    logger.warning(fault)
                ledger.add(batch, shard)
                advance(len(batch.groups))
    workers.meet()
    return there


def _trusted(settings: RankSettings, opened: _Opened) -> int:
    return 0 if opened.validation is None or settings.against is not None else len(opened.validation.groups)


def _batch(settings: RankSettings, ledger: ShardLedger, opened: _Opened, part: str, number: int) -> Batch:
    start, stop = number * ledger.size, (number + 1) * ledger.size
    exact = settings.against is not None
    if part == "train":
        pool = opened.pool
        return Batch(part, number, tuple(pool.groups(start, stop)), pool.offset(start), exact)
    assert opened.validation is not None
    groups = opened.validation.groups
    before = sum(len(group.rewards) for group in groups[:start])
    return Batch(part, number, groups[start:stop], before, exact)


def _finish(
    settings: RankSettings,
    ledger: ShardLedger,
    opened: _Opened,
    projection: Projection,
    before: int,
    progress: TellsProgress,
) -> RankReport:
    pool, validation = opened.pool, opened.validation
    trusted = validation.groups if validation is not None and settings.against is None else None
    measured = Measured(settings, pool, ledger, trusted, ledger.pooled() if settings.against else None)
    _warn_of_cuts(settings, ledger, opened)
    with open_scorer(settings, settings.measured()) as client:
        scored = ask_scorer(measured, client, projection, progress)
    files = write_groups(measured)
    selected = []
    if settings.problems is not None and settings.select is not None:
        selected = pool.best(settings.select)
        problems = read_problem_file(
            settings.problems, drop_duplicates=settings.duplicates == "drop", keep=set(selected)
        )
        folder = settings.selected or settings.out.with_name("selected")
        write_selected(folder, problems, selected)
        files += [folder / "train.jsonl", folder / "train.parquet"]
    report = _report(measured, opened, scored, before)
    pool.close()
    ledger.remove()
    return RankReport(**report, selected=selected, files=files)


def _report(measured: Measured, opened: _Opened, scored: Scored, before: int) -> dict[str, Any]:
    settings, pool = measured.settings, measured.pool
    others = [file for file in (opened.validation, opened.problems) if file is not None]
    trusted = len(measured.trusted or ())
    starts = range(0, len(pool), LOOK)
    equal = (len(set(group.rewards)) == 1 for start in starts for group in pool.rewards(start, start + LOOK))
    return {
        "groups": len(pool),
        "no_signal": sum(equal),
        "bad": pool.bad + sum(len(file.bad) for file in others),
        "left_out": pool.left_out,
        "measured": len(pool) + trusted - before,
        "coherence": scored.refresh.coherence if scored.refresh and settings.against is None else None,
        "reliability": scored.reliability,
        "advised_dim": scored.advised_dim,
        "spearman": exact_spearman(measured),
    }


def _warn_of_cuts(settings: RankSettings, ledger: ShardLedger, opened: _Opened) -> None:
    warn_of_cut(settings.train, ledger.cut("train", len(opened.pool)), opened.pool.responses, settings)
    count = _trusted(settings, opened)
    if opened.validation is not None and settings.validation is not None and count:
        responses = sum(len(group.rewards) for group in opened.validation.groups)
        warn_of_cut(settings.validation, ledger.cut("validation", count), responses, settings)
