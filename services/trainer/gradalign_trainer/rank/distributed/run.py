"""`run_shared`: from files to files, by many workers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from gradalign.errors import GradAlignError
from gradalign.wire.projection import Projection
from gradalign_trainer.rank.distributed.merging import Measured, ask_scorer, exact_spearman, write_groups
from gradalign_trainer.rank.distributed.pool import Pool
from gradalign_trainer.rank.distributed.shards import Batch, Pooled, Shard, ShardLedger
from gradalign_trainer.rank.steps.measure import warn_of_cut
from gradalign_trainer.rank.steps.opening import check_known, open_problems, open_responses, open_scorer, warn_of_bad
from gradalign_trainer.rank.steps.outputs import ProblemFile, read_problem_file, write_selected
from gradalign_trainer.rank.steps.report import RankReport
from gradalign_trainer.rank.steps.responses import GroupId, ResponseFile, ResponseGroup, read_responses
from gradalign_trainer.rank.steps.scoring import Scored, check_sizes
from gradalign_trainer.rank.steps.settings import RankSettings, digest
from gradalign_trainer.reporting.progress import TellsProgress, no_progress

__all__ = ["Workers", "run_shared"]

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
    if workers.rank == 0:
        resume = settings.resume or workers.restarted
        ShardLedger.begin(folder, _state(settings), groups_per_task, resume=resume)
    ledger = ShardLedger(folder, groups_per_task)
    try:
        with workers, ExitStack() as stack:
            if workers.rank == 0:
                return _First(settings, workers, ledger, progress).run(stack)
            _Other(settings, workers, ledger, no_progress).run(stack)
            return None
    except GradAlignError:
        if workers.rank == 0 and not ledger.measured():
            ledger.remove()
        raise


def _state(settings: RankSettings) -> dict[str, Any]:
    problems = None if settings.problems is None else digest(settings.problems)
    return {**settings.measured(), "problems": problems, "duplicates": settings.duplicates, "threads": settings.threads}


class _Shared:
    """What every process does: measure its part."""

    pool: Pool
    validation: ResponseFile | None

    def __init__(self, settings: RankSettings, workers: Workers, ledger: ShardLedger, progress: TellsProgress) -> None:
        self.settings, self.workers, self.ledger, self.progress = settings, workers, ledger, progress
        self.exact = settings.against is not None

    def trusted(self) -> tuple[ResponseGroup, ...]:
        """The validation groups that are measured one by one."""
        return () if self.validation is None or self.exact else self.validation.groups

    def measure(self, part: str, missing: Sequence[int] | None) -> None:
        """Measure this process's part of the missing batches, which the first process knows."""
        mine = self.workers.share(missing)
        count = len(self.pool) if part == "train" else len(self.trusted())
        with self.progress(f"{part} gradients", sum(self.ledger.groups(number, count) for number in mine)) as advance:
            for batch, shard, faults in self.workers.measure(self._batch(part, number) for number in mine):
                for fault in faults:
                    logger.warning(fault)
                self.ledger.add(batch, shard)
                advance(len(batch.groups))

    def _batch(self, part: str, number: int) -> Batch:
        start, stop = number * self.ledger.size, (number + 1) * self.ledger.size
        if part == "train":
            return Batch(part, number, tuple(self.pool.groups(start, stop)), self.pool.offset(start), self.exact)
        groups = self.trusted()
        before = sum(len(group.rewards) for group in groups[:start])
        return Batch(part, number, groups[start:stop], before, self.exact)


class _Other(_Shared):
    """A process that measures alone."""

    def run(self, stack: ExitStack) -> None:
        """Take part; the first process says when."""
        settings, workers = self.settings, self.workers
        workers.meet()
        place = self.ledger.folder / "pool.sqlite"
        self.pool = stack.enter_context(closing(Pool(place, settings.train, None, self.progress)))
        self.validation = None if settings.validation is None else read_responses(settings.validation)
        workers.projection()
        if self.exact:
            workers.meet()
            workers.hold(self.ledger.gradient())
        for part in ("validation", "train"):
            self.measure(part, None)
        workers.meet()


class _First(_Shared):
    """The process that does what is done once."""

    problems: ProblemFile | None

    def run(self, stack: ExitStack) -> RankReport:
        """All of it."""
        self._open(stack)
        self.workers.meet()
        projection = self.workers.projection()
        measured = self._take_pooled() + self._measure_all()
        self.workers.meet()
        self.workers.release()
        report = self._finish(projection, measured)
        stack.close()
        self.ledger.remove()
        return report

    def _finish(self, projection: Projection, measured: int) -> RankReport:
        found = Measured(self.settings, self.pool, self.ledger, self.trusted(), self.ledger.pooled())
        self._warn_of_cuts()
        with open_scorer(self.settings, self.settings.measured()) as client:
            scored = ask_scorer(found, client, projection, self.progress)
        files = write_groups(found)
        selected = self._select()
        if self.problems is not None:
            folder = self.settings.selected_folder
            files += [folder / "train.jsonl", folder / "train.parquet"]
        return self._report(found, scored, measured, selected, files)

    def _open(self, stack: ExitStack) -> None:
        settings = self.settings
        self.validation = None if settings.validation is None else open_responses(settings.validation, self.progress)
        self.problems = None
        if settings.problems is not None:
            self.problems = open_problems(settings.problems, settings.duplicates, keep=())
        known = None if self.problems is None else self.problems.records
        place = self.ledger.folder / "pool.sqlite"
        self.pool = pool = stack.enter_context(closing(Pool(place, settings.train, known, self.progress)))
        warn_of_bad(settings.train, pool.bad_records(), pool.bad, pool.records)
        if self.problems is not None:
            check_known(settings.train, self.problems, len(pool), pool.left_out, pool.ids())
        check_sizes(settings, len(pool), len(self.validation.groups) if self.validation else 0)

    def _take_pooled(self) -> int:
        if not self.exact:
            return 0
        missing = self.ledger.pooled() is None
        if missing:
            trusted = self.validation if self.settings.against != self.settings.train else None
            groups = trusted.groups if trusted is not None else self.pool.groups(0, len(self.pool))
            self.ledger.keep_pooled(*self.workers.pooled(groups))
        self.workers.meet()
        self.workers.hold(self.ledger.gradient())
        return int(missing)

    def _measure_all(self) -> int:
        measured = 0
        for part, count in (("validation", len(self.trusted())), ("train", len(self.pool))):
            missing = self.ledger.missing(part, count)
            measured += sum(self.ledger.groups(number, count) for number in missing)
            self.measure(part, missing)
        return measured

    def _select(self) -> Sequence[GroupId]:
        settings = self.settings
        if settings.problems is None or settings.select is None:
            return ()
        selected = self.pool.best(settings.select)
        drop = settings.duplicates == "drop"
        problems = read_problem_file(settings.problems, drop_duplicates=drop, keep=set(selected))
        write_selected(settings.selected_folder, problems, selected)
        return selected

    def _warn_of_cuts(self) -> None:
        settings, ledger = self.settings, self.ledger
        warn_of_cut(settings.train, ledger.cut("train", len(self.pool)), self.pool.responses, settings)
        if settings.validation is not None:
            responses = sum(len(group.rewards) for group in self.trusted())
            warn_of_cut(settings.validation, ledger.cut("validation", len(self.trusted())), responses, settings)

    def _report(
        self, found: Measured, scored: Scored, measured: int, selected: Sequence[GroupId], files: Sequence[Path]
    ) -> RankReport:
        others = [file for file in (self.validation, self.problems) if file is not None]
        return RankReport(
            groups=len(self.pool),
            no_signal=self.pool.without_signal(),
            bad=self.pool.bad + sum(len(file.bad) for file in others),
            left_out=self.pool.left_out,
            measured=measured,
            coherence=scored.refresh.coherence if scored.refresh and not self.exact else None,
            reliability=scored.reliability,
            advised_dim=scored.advised_dim,
            spearman=exact_spearman(found) if self.settings.exact else None,
            selected=selected,
            files=files,
        )
