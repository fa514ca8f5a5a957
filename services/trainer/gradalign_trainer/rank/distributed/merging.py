"""The scorer's view of a shared ranking, and its files: chunk by chunk out of pool and shards, in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradalign import Client
from gradalign.wire.projection import Projection
from gradalign_trainer.rank.distributed.pool import Pool, Rewarded, Score
from gradalign_trainer.rank.distributed.shards import Pooled, Shard, ShardLedger
from gradalign_trainer.rank.steps.measure import POOLED
from gradalign_trainer.rank.steps.outputs import write_lines
from gradalign_trainer.rank.steps.report import BY_PRIORITY, accuracy_line, pass_rate, similarity_line
from gradalign_trainer.rank.steps.responses import ResponseGroup, wire_id
from gradalign_trainer.rank.steps.scoring import CHUNK, Columns, Scored, Scoring, sketch_spearman, with_epsilon
from gradalign_trainer.rank.steps.settings import RankSettings
from gradalign_trainer.reporting.progress import TellsProgress

__all__ = ["Measured", "ask_scorer", "exact_spearman", "write_groups"]

logger = logging.getLogger(__name__)


class Measured(NamedTuple):
    """All that was measured.

    Attributes:
        settings: of the ranking.
        pool: the candidates.
        ledger: what they gave.
        trusted: the validation groups; none where they were pooled.
        pooled: the full validation gradient's figures; None where no exact products were taken.
    """

    settings: RankSettings
    pool: Pool
    ledger: ShardLedger
    trusted: Sequence[ResponseGroup]
    pooled: Pooled | None


def ask_scorer(measured: Measured, client: Client, projection: Projection, progress: TellsProgress) -> Scored:
    """Have all candidates scored; the pool holds their scores then.

    Raises:
        GradAlignError: what the client raises, or the strategy takes fewer at once.
    """
    settings, pool = measured.settings, measured.pool
    scoring = Scoring(client, projection, settings.asked_strategy)
    validation = _validation(measured)
    if validation is not None:
        scoring.refresh(validation)
    pool.begin_scores()
    by_priority = settings.strategy in BY_PRIORITY
    start = 0
    with progress("scoring", len(pool)) as advance:
        for reply, alignments in scoring.replies(_candidates(measured)):
            stop = min(start + CHUNK, len(pool))
            values = reply.priorities if by_priority else alignments
            given = dict(zip(reply.problem_ids, zip(reply.priorities, values, strict=True), strict=True))
            groups, losses = pool.rewards(start, stop), measured.ledger.read("train", start, stop).losses
            pool.score(
                Score(start + i, *given[wire_id(group.group_id)], float(losses[i]))
                for i, group in enumerate(groups)
                if wire_id(group.group_id) in given
            )
            advance(stop - start)
            start = stop
    for problem_id, reason in scoring.scored.rejected.items():
        logger.warning("group %s was left out by the scorer: %s", problem_id.lstrip("0") or "0", reason)
    return scoring.scored


def _validation(measured: Measured) -> Columns | None:
    if measured.pooled is not None:
        return Columns([POOLED], measured.pooled.sketch[None], tokens=[1], rollouts=[1])
    if not measured.trusted:
        return None
    shard = measured.ledger.read("validation", 0, len(measured.trusted))
    groups = [Rewarded(group.group_id, group.rewards) for group in measured.trusted]
    return Columns(**_common(groups, shard))


def _candidates(measured: Measured) -> Iterator[Columns]:
    pool, pooled = measured.pool, measured.pooled
    for start in range(0, len(pool), CHUNK):
        stop = min(start + CHUNK, len(pool))
        groups, shard = pool.rewards(start, stop), measured.ledger.read("train", start, stop)
        exact = {} if pooled is None else {"dots": shard.dots.tolist(), "norms": shard.norms.tolist()}
        columns = Columns(**_common(groups, shard), pass_rates=[pass_rate(group.rewards) for group in groups], **exact)
        if pooled is not None and measured.settings.rule.name == "reference":
            columns = with_epsilon(columns, pooled.norm)
        yield columns


def _common(groups: Sequence[Rewarded], shard: Shard) -> dict[str, Any]:
    return {
        "ids": [wire_id(group.group_id) for group in groups],
        "sketches": shard.sketches,
        "tokens": shard.tokens.tolist(),
        "rollouts": [len(group.rewards) for group in groups],
    }


def write_groups(measured: Measured) -> list[Path]:
    """Write similarities, pass rates and the records that were left out; the files."""
    settings, pool = measured.settings, measured.pool
    write_lines(
        settings.out, (similarity_line(group.group_id, score.value, score.loss) for group, score in _scored(pool))
    )
    write_lines(
        settings.accuracy,
        (accuracy_line(group.group_id, group.rewards, score.value) for group, score in _scored(pool)),
    )
    files = [settings.out, settings.accuracy]
    if pool.bad:
        files.append(settings.out.with_name("bad_records.jsonl"))
        write_lines(files[-1], ({"place": str(bad.place), "message": bad.message} for bad in pool.bad_records()))
    return files


def _scored(pool: Pool) -> Iterator[tuple[Rewarded, Score]]:
    for start in range(0, len(pool), CHUNK):
        scores = pool.scores(start, start + CHUNK)
        for position, group in enumerate(pool.rewards(start, start + CHUNK), start):
            if position in scores:
                yield group, scores[position]


def exact_spearman(measured: Measured) -> float | None:
    """Spearman of sketched with exact alignments over the groups with a signal; None where none were taken exactly."""
    if measured.pooled is None:
        return None
    return sketch_spearman(_exact_groups(measured), measured.pooled.sketch)


def _exact_groups(measured: Measured) -> Iterator[tuple[float, float, npt.NDArray[np.float32]]]:
    for start in range(0, len(measured.pool), CHUNK):
        shard = measured.ledger.read("train", start, min(start + CHUNK, len(measured.pool)))
        yield from zip(shard.dots, shard.norms, shard.sketches, strict=True)
