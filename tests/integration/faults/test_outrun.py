"""A request whose validation gradient other writers replace, again and again, while it is computed."""

import numpy as np
import pytest
from enginekit import running

from gradalign import Ranking, RefreshReply, RefreshRequest, ScoreRequest, SketchMatrix, Unavailable, ValidationMissing
from gradalign.wire.codec import MSGPACK, decode_request, decode_value, encode_request
from gradalign_scorer.http.bodies import Body
from gradalign_scorer.service.requests import Service
from gradalign_scorer.service.validations import ValidationCache
from gradalign_scorer.store.runs import KEEP_VALIDATIONS
from gradalign_scorer.telemetry.metrics import Metrics
from gradalign_scorer.telemetry.run_metrics import RunFigures

DIM = 8
SKETCHES = np.eye(3, DIM, dtype=np.float32)
IDS = ["a", "b", "c"]


class Overtaken:
    """A store beside which another writer is at work: behind a load of the run, so many times, it does something."""

    def __init__(self, store, times, act, *, behind="load_run"):
        self._store, self._left, self._act, self._behind = store, times, act, behind

    def __getattr__(self, name):
        method = getattr(self._store, name)
        if name != self._behind:
            return method

        async def overtaken(*args):
            result = await method(*args)
            if self._left:
                self._left -= 1
                await self._act(self._store)
            return result

        return overtaken


def refreshes(kit):
    """An act that pushes every validation gradient out of the store."""

    async def act(store):
        made = (await store.load_run(kit.run_id)).validation_counter
        for number in range(made + 1, made + 1 + KEEP_VALIDATIONS):
            await store.commit_refresh(kit.refresh(number))

    return act


def played(kit, act, request, times, *, behind="load_run", validation=True):
    """The reply to a request while the act is done behind the first `times` loads, and the run as it is then."""

    async def go(store):
        if validation:
            await store.commit_refresh(kit.refresh(1))
        seen = Overtaken(store, times, act, behind=behind)
        with running() as engine:
            service = Service(seen, engine, ValidationCache(seen, 0), Metrics(), RunFigures(store, 4))
            packed = memoryview(bytearray().join(encode_request(request)))
            ask = service.score if isinstance(request, ScoreRequest) else service.refresh
            try:
                reply = await ask(decode_request(type(request), MSGPACK, packed), Body(MSGPACK, packed))
            except Exception as error:
                reply = error
        return reply, await store.run_state(kit.run_id)

    return kit.run(go)


def scored(kit, **changes):
    fields = {
        "policy_version": 0,
        "problem_ids": IDS,
        "sketches": SketchMatrix.of(SKETCHES),
        "projection": kit.projection,
        **changes,
    }
    return ScoreRequest(run_id=kit.run_id, **fields)


def decayed(kit):
    """A refresh that leaves a part of the gradient that the run holds."""
    fields = {
        "problem_ids": ["v"],
        "sketches": SketchMatrix.of(SKETCHES[:1]),
        "projection": kit.projection,
        "decay": 0.5,
    }
    return RefreshRequest(run_id=kit.run_id, policy_version=0, **fields)


@pytest.mark.parametrize("behind", ["load_run", "load_validation"])
@pytest.mark.parametrize("times", [1, 4])
def test_it_is_scored_again_against_the_current_one(kit, times, behind):
    reply, run = played(kit, refreshes(kit), scored(kit), times, behind=behind)
    ranking = Ranking.from_map(decode_value(reply, MSGPACK))
    assert ranking.validation_version == run.validation_version == 1 + KEEP_VALIDATIONS * times
    assert run.problems == len(IDS)


@pytest.mark.parametrize("times", [1, 4])
def test_a_refresh_that_decays_begins_at_the_current_one(kit, times):
    reply, run = played(kit, refreshes(kit), decayed(kit), times)
    assert RefreshReply.from_map(decode_value(reply, MSGPACK)).validation_version == run.validation_version
    assert run.validation_version == 2 + KEEP_VALIDATIONS * times


@pytest.mark.parametrize("request_of", [scored, decayed])
def test_one_that_is_outrun_always_is_told_to_retry_and_stores_nothing(kit, request_of):
    reply, run = played(kit, refreshes(kit), request_of(kit), 99)
    assert isinstance(reply, Unavailable)
    assert reply.retry_after == 1.0
    assert "times while this request was computed; retry" in str(reply)
    assert run.problems == 0


def test_of_a_run_that_was_deleted_meanwhile_it_says_what_is_missing(kit):
    async def delete(store):
        await store.delete_run(kit.run_id)
        await store.commit_scores(kit.scores({"other": 0.5}))

    reply, run = played(kit, delete, scored(kit, strategy="cosine"), 1)
    assert isinstance(reply, ValidationMissing)
    assert "send /refresh_validation first" in str(reply)
    assert run.problems == 1
