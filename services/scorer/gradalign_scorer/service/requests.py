"""The three requests that change a run, from a parsed message to the bytes of its reply.

Each looks up the run, answers a repetition from its stored reply, refuses what disagrees with the run, computes on the
engine's thread, and replies once the store has acknowledged the one script that checks again and writes. A refused
request stores nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gradalign import RefreshRequest, ScoreRequest, SelectRequest, WireError
from gradalign_scorer.http.bodies import Body
from gradalign_scorer.http.requestlog import stage
from gradalign_scorer.ranking.aggregation import ValidationGradient, aggregate, checked_products, decayed
from gradalign_scorer.ranking.alignment import Products, SketchRows
from gradalign_scorer.ranking.predictor import Moments
from gradalign_scorer.ranking.products import score_products
from gradalign_scorer.ranking.scoring import Evidence, Scored, Scoring, score, score_rates, score_together
from gradalign_scorer.ranking.selection import StoredScores
from gradalign_scorer.service.checks import TRIES, check_clock, check_run, check_version, outrun
from gradalign_scorer.service.engine import Engine
from gradalign_scorer.service.outcomes import refresh_commit, score_commit, selection_commit
from gradalign_scorer.service.proposals import (
    drawn_worths,
    expectations,
    picks_by_belief,
    picks_of,
    stored_scores,
    with_predictions,
)
from gradalign_scorer.service.streaming import arriving_products
from gradalign_scorer.service.validations import ValidationCache
from gradalign_scorer.store import (
    Commit,
    ProblemColumns,
    RunRecord,
    RunStore,
    ValidationGoneError,
    ValidationRecord,
    VersionTakenError,
    features_mismatch,
    run_not_found,
)
from gradalign_scorer.telemetry.metrics import Metrics
from gradalign_scorer.telemetry.run_metrics import RunFigures

__all__ = ["Service"]

T = TypeVar("T")


class Service:
    """Holds nothing that the store does not, so that replicas may share a store.

    Args:
        store: of all runs.
        engine: that computes.
        validations: cache of validation gradients.
        metrics: to count in.
        figures: to count in, by run.
    """

    def __init__(
        self, store: RunStore, engine: Engine, validations: ValidationCache, metrics: Metrics, figures: RunFigures
    ) -> None:
        self.store = store
        self.engine = engine
        self._validations = validations
        self._metrics = metrics
        self._figures = figures

    async def score(self, request: ScoreRequest, body: Body) -> bytes:
        """Rank problems and remember their scores.

        Args:
            request: a parsed `POST /score`, whose sketches view the body.
            body: of the request, perhaps still coming: its rows are taken as they arrive. The same request id with another
                body is refused.

        Returns:
            The `Ranking` in msgpack.

        Raises:
            WireError: with the request's id.
        """
        with _named(request.request_id):
            for _ in range(TRIES):
                try:
                    return await self._score(request, body)
                except ValidationGoneError:
                    continue
            raise outrun(request.run_id)

    async def _score(self, request: ScoreRequest, body: Body) -> bytes:
        with self._metrics.stage("load"):
            run = await self.store.load_run(request.run_id)
            stored = await self._stored_reply(request, run, body)
            if stored is not None:
                return stored
            check_run(request, run)
            validation = await self._validations.current(run) if run else None
            check_version("dots_version", request.dots_version, validation, request.run_id)
            check_version("products_version", request.products_version, validation, request.run_id)
        strategy = request.strategy or (run or RunRecord.begun_by(request)).strategy
        with self._metrics.stage("compute", body):
            scored, digest = await self._computed(request, strategy, run, validation, body)
        with self._metrics.stage("commit"):
            commit = score_commit(request, digest, strategy, validation, scored)
            reply = await self.store.commit_scores(commit)
        self._count(commit)
        return reply

    async def _computed(
        self,
        request: ScoreRequest,
        strategy: str,
        run: RunRecord | None,
        validation: ValidationRecord | None,
        body: Body,
    ) -> tuple[Scored, bytes]:
        """The ranking, and the digest of the body."""
        if request.sketches is None:
            await body.whole()
            evidence = await self._evidence(request, run, strategy)
            job = partial(score_rates, request, strategy, evidence)
            if request.products is not None:
                assert validation is not None
                job = partial(score_products, request, strategy, validation.length, evidence)
            return await asyncio.gather(self.engine.run(job), _digest(request, body))
        vector = None if validation is None else torch.tensor(validation.vector)
        async with _alongside(self._evidence(request, run, strategy)) as loading:
            parts = await arriving_products(
                request.sketches, vector, body, self.engine, digested=request.request_id is not None
            )
        scoring = Scoring(request, strategy, loading.result())
        return await asyncio.gather(self._scored(scoring, run, vector, parts), _digest(request, body))

    async def _scored(
        self, scoring: Scoring, run: RunRecord | None, vector: Tensor | None, parts: Products | None
    ) -> Scored:
        device = self.engine.device
        if parts is not None:
            return await self.engine.run(
                partial(score, scoring.request, scoring.strategy, vector, scoring.evidence, device, parts=parts)
            )
        # What a pass takes is one vector, and a version never changes within a run's incarnation.
        version = (run.run_id, run.incarnation, run.validation_version) if run and vector is not None else None
        sketches = scoring.request.sketches
        kind = (version, sketches.dim if sketches else 0)

        def together(scorings: Sequence[Scoring]) -> list[Scored | Exception]:
            self._metrics.batches.observe(len(scorings))
            return score_together(scorings, vector, device)

        return await self.engine.run_together(kind, scoring, together)

    async def refresh(self, request: RefreshRequest, body: Body) -> bytes:
        """Replace the run's validation gradient; the `RefreshReply` in msgpack. Arguments and errors as for `score`."""
        with _named(request.request_id):
            gradient: ValidationGradient | None = None
            await body.whole()
            digest = await _digest(request, body)
            for _ in range(TRIES):
                with stage("load"):
                    run = await self.store.load_run(request.run_id)
                    stored = await self._stored_reply(request, run, body)
                if stored is not None:
                    return stored
                check_run(request, run)
                if gradient is None:
                    with stage("compute"):
                        gradient = await self._aggregate(request)
                version = (run.validation_counter if run else 0) + 1
                try:
                    base = await self._decaying(request, run)
                    whole = gradient if base is None else await self._decayed(request, gradient, base)
                    commit = refresh_commit(request, digest, version, whole, base=base.version if base else None)
                    with stage("commit"):
                        reply = await self.store.commit_refresh(commit)
                except (VersionTakenError, ValidationGoneError):
                    continue
                self._count(commit)
                return reply
            raise outrun(request.run_id)

    async def select(self, request: SelectRequest, body: Body) -> bytes:
        """Pick from the stored priorities; the `Selection` in msgpack. Arguments and errors as for `score`."""
        with _named(request.request_id):
            with stage("load"):
                run = await self.store.load_run(request.run_id)
                if run is None:
                    raise run_not_found(request.run_id)
                stored = await self._stored_reply(request, run, body)
                if stored is not None:
                    return stored
                check_clock(request.epoch, request.policy_version, run)
                columns = await self.store.load_problems(request.run_id, request.problem_ids)
                scores = await self._scores(request, run, columns)
            with stage("compute"):
                picks = await self.engine.run(partial(picks_of, scores, request))
            digest = await _digest(request, body)
            commit = selection_commit(request, digest, run, scores, picks)
            with stage("commit"):
                reply = await self.store.commit_selection(commit)
            self._count(commit)
            return reply

    async def _scores(self, request: SelectRequest, run: RunRecord, columns: ProblemColumns) -> StoredScores:
        """What to pick by: beliefs, features, or priorities as last ranked."""
        if picks_by_belief(request, run):
            beliefs = await self.store.load_beliefs(request.run_id, columns.ids)
            return await asyncio.to_thread(drawn_worths, columns, beliefs, request)
        if request.features is None:
            return stored_scores(columns)
        learned = await self._moments(request.run_id, request.features)
        table = np.array(request.features)
        return await asyncio.to_thread(expectations, columns, table, learned, request, run.spread())

    def _count(self, commit: Commit) -> None:
        self._metrics.count_round(commit.record)
        self._figures.count_round(commit.run_id, commit.record)

    async def _stored_reply(
        self, request: ScoreRequest | RefreshRequest | SelectRequest, run: RunRecord | None, body: Body
    ) -> bytes | None:
        # Without a reply there is nothing to hold the body to, and its digest can wait until all of it is there.
        if request.request_id is None or run is None or not await self.store.has_reply(run, request.request_id):
            return None
        digest = await _digest(request, body)
        stored = await self.store.stored_reply(run, request.request_id, digest, epoch=request.epoch)
        if stored is not None:
            self._metrics.repeated.inc()
        return stored

    async def _aggregate(self, request: RefreshRequest) -> ValidationGradient:
        if request.sketches is None:
            return await self.engine.run(partial(checked_products, request))
        rows, rule = SketchRows([request.sketches]), request.aggregation or "pooled"
        return await self.engine.run(partial(aggregate, rows, rule, request.tokens, self.engine.device))

    async def _decaying(self, request: RefreshRequest, run: RunRecord | None) -> ValidationRecord | None:
        """The run's validation gradient where something of it is to be left; None also where the run has none."""
        if request.decay is None:
            return None
        held = await self._validations.current(run) if run else None
        check_version("decay_version", request.decay_version, held, request.run_id)
        return held

    async def _decayed(
        self, request: RefreshRequest, gradient: ValidationGradient, base: ValidationRecord
    ) -> ValidationGradient:
        assert request.decay is not None
        job = partial(decayed, gradient, torch.tensor(base.vector), base.length, request.decay)
        return await self.engine.run(job)

    async def _evidence(self, request: ScoreRequest, run: RunRecord | None, strategy: str) -> Evidence:
        if run is None:
            zeros = np.zeros(len(request.problem_ids))
            return Evidence(zeros, zeros, None)
        columns = await self.store.load_problems(request.run_id, request.problem_ids)
        spread = run.spread()
        wanted = strategy == "posterior"
        beliefs = await self.store.load_beliefs(request.run_id, request.problem_ids) if wanted else None
        sums, weights = columns.column("evidence_sum"), columns.column("evidence_weight")
        evidence = Evidence(sums, weights, spread.deviation if spread else None, beliefs=beliefs, scatter=run.scatter())
        if request.features is None:
            return evidence
        learned = await self._moments(request.run_id, request.features)
        return await asyncio.to_thread(with_predictions, evidence, learned, np.array(request.features), run.strength)

    async def _moments(self, run_id: str, features: list[list[float]]) -> Moments | None:
        """What the run has learned of its features; FeaturesMismatch where these are others."""
        moments = await self.store.load_moments(run_id)
        if moments is not None and moments.width != len(features[0]):
            raise features_mismatch(len(features[0]), moments.width)
        return moments


async def _digest(request: ScoreRequest | RefreshRequest | SelectRequest, body: Body) -> bytes:
    """The digest that is stored with the request's id; empty without an id."""
    if request.request_id is None:
        return b""
    await body.whole()
    return await asyncio.to_thread(body.digest)


@asynccontextmanager
async def _alongside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Do some work while the block runs: it is done when the block has ended, and ended where the block fails."""
    task = asyncio.create_task(work)
    try:
        yield task
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextmanager
def _named(request_id: str | None) -> Iterator[None]:
    """Put the request's id on every error that leaves."""
    try:
        yield
    except WireError as error:
        error.request_id = request_id
        raise
