"""What both clients share: one builder for every request, one parser for every reply, one rule for retries."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypedDict, TypeVar, Unpack, cast
from urllib.parse import quote

import httpx

from gradalign.client.tls import distrust_advice
from gradalign.errors import (
    GradAlignError,
    UnavailableError,
    Unreachable,
    WireError,
    error_from_wire,
)
from gradalign.wire.checks import check_int, check_name, check_one_of, check_text
from gradalign.wire.codec import JSON, MSGPACK, decode_value, encode_request, encode_value
from gradalign.wire.matrix import SENT_DTYPES, SketchMatrix
from gradalign.wire.messages import RefreshRequest, ScoreRequest, SelectRequest
from gradalign.wire.projection import Projection
from gradalign.wire.replies import (
    ProblemPage,
    ProblemState,
    Ranking,
    RankingOutline,
    RefreshReply,
    RoundRecord,
    RunState,
    Selection,
)

__all__ = ["Call", "CallBuilder", "RefreshFields", "RetryPolicy", "ScoreFields", "SelectFields"]

T = TypeVar("T")
SEND_BYTES = 512 << 10


class ScoreFields(TypedDict, total=False):
    """Optional columns and settings of a /score request; `ScoreRequest` says what each means."""

    norms: Sequence[float] | None
    dots: Sequence[float] | None
    dots_version: int | None
    rollouts: Sequence[int] | None
    tokens: Sequence[int] | None
    pass_rates: Sequence[float] | None
    strategy: str | None
    select: int | None
    features: Any
    products: Any
    products_version: int | None
    norms_kind: str | None
    rollout_weights: bool | None
    shrink_weights: bool | None
    discount: float | None
    request_id: str | None


class RefreshFields(TypedDict, total=False):
    """Optional columns and settings of a /refresh_validation request; `RefreshRequest` says what each means."""

    norms: Sequence[float] | None
    rollouts: Sequence[int] | None
    tokens: Sequence[int] | None
    aggregation: str | None
    decay: float | None
    decay_version: int | None
    products: Any
    lengths: float | Sequence[float] | None
    carried: float | None
    norms_kind: str | None
    request_id: str | None


class SelectFields(TypedDict, total=False):
    """Optional settings of a /select request; `SelectRequest` says what each means."""

    problem_ids: Sequence[str] | None
    features: Any
    strategy: str | None
    half_life: float
    exploration: float
    cooldown: int
    seed: int
    request_id: str | None


@dataclass(frozen=True)
class Call(Generic[T]):
    """One HTTP exchange, ready to send.

    Attributes:
        method: HTTP method.
        path: path and query.
        parse: makes the reply of the decoded body.
        parts: the body, in order; empty for none.
        content_type: of the body.
        repeatable: sending it twice has the effect of sending it once.
    """

    method: str
    path: str
    parse: Callable[[Any], T]
    parts: Sequence[bytes | memoryview] = ()
    content_type: str = JSON
    repeatable: bool = True

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the request; the length is stated, so that the body is not sent chunked."""
        headers = {"Accept": MSGPACK}
        if self.parts:
            headers["Content-Type"] = self.content_type
        if self.method == "POST":
            headers["Content-Length"] = str(sum(memoryview(part).nbytes for part in self.parts))
        return headers

    def chunks(self) -> Iterator[bytes]:
        """The body in slices: httpx copies a whole body quadratically, and slices not at all."""
        for part in self.parts:
            view = memoryview(part)
            for start in range(0, len(view), SEND_BYTES):
                # httpx declares bytes and hands on whatever the socket takes; a copy here would cost what slicing saves.
                yield cast("bytes", view[start : start + SEND_BYTES])

    def read(self, response: httpx.Response) -> T:
        """The reply of a response whose body has been read, or the error it stands for, raised."""
        content_type = response.headers.get("Content-Type", "")
        if response.status_code >= 400:
            raise _error_of(response, content_type)
        return self.parse(decode_value(response.content, content_type) if response.content else None)


def _error_of(response: httpx.Response, content_type: str) -> WireError:
    try:
        body = decode_value(response.content, content_type)
    except GradAlignError:
        body = response.text
    retry_after = None
    # Retry-After has whole seconds only; a full queue is often done in a fraction of one.
    for header, unit in (("Retry-After", 1.0), ("Retry-After-Ms", 1e-3)):
        with suppress(KeyError, ValueError):
            retry_after = float(response.headers[header]) * unit
    return error_from_wire(response.status_code, body, retry_after=retry_after)


@dataclass(frozen=True)
class RetryPolicy:
    """When to try again after an `UnavailableError`, and how long to wait first.

    Waits double from `first_delay` up to `longest_delay`, each shortened by a random share of up to a half so that many
    trainers do not come back at once; a longer Retry-After is honoured up to `longest_delay`.

    Attributes:
        retries: tries after the first one.
        first_delay: seconds.
        longest_delay: seconds.
    """

    retries: int = 5
    first_delay: float = 0.2
    longest_delay: float = 5.0
    _random: random.Random = field(default_factory=random.Random, compare=False, repr=False)

    def allows(self, call: Call[Any], error: UnavailableError) -> bool:
        """Whether another try does no harm: the call may be repeated, or had no effect."""
        sent = not (isinstance(error, Unreachable) and isinstance(error.__cause__, httpx.ConnectError))
        refused = not isinstance(error, Unreachable) and error.status == 429
        return call.repeatable or refused or not sent

    def delay(self, call: Call[Any], error: UnavailableError, attempt: int) -> float | None:
        """Seconds to wait before the next try, or None to give up; `attempt` is 0 for the first failure."""
        if attempt >= self.retries or not self.allows(call, error):
            return None
        backoff = min(self.first_delay * 2.0**attempt, self.longest_delay) * (1 - 0.5 * self._random.random())
        return max(backoff, min(error.retry_after or 0.0, self.longest_delay))


def unreachable(call: Call[Any], base_url: str, error: httpx.TransportError) -> Unreachable:
    """The error for a reply that never came."""
    reason = str(error) or type(error).__name__
    advice = distrust_advice(error) or "Check that the scorer runs there (`gradalign serve`), and its log."
    return Unreachable(f"{call.method} {base_url}{call.path} got no reply ({type(error).__name__}: {reason}). {advice}")


def _nothing(_: Any) -> None:
    return None


class CallBuilder:
    """Builds the calls of one run.

    Args:
        run_id: the training job.
        epoch: fencing token put on every write; None for no fencing.
        sketch_dtype: of the sketches on the wire, `float32` or `int8`; None for that of the arrays.
    """

    def __init__(self, run_id: str, epoch: int | None = None, sketch_dtype: str | None = None) -> None:
        self.run_id = check_name("run_id", run_id)
        self.epoch = None if epoch is None else check_int("epoch", epoch)
        self.sketch_dtype = sketch_dtype and check_one_of("sketch_dtype", sketch_dtype, SENT_DTYPES)

    def _common(self, request_id: str | None) -> dict[str, Any]:
        given = uuid.uuid4().hex if request_id is None else request_id
        return {"run_id": self.run_id, "epoch": self.epoch, "request_id": given}

    def _rows(
        self, problem_ids: Sequence[str], sketches: Any, policy_version: int, projection: Projection | None
    ) -> dict[str, Any]:
        return {
            "problem_ids": list(problem_ids),
            "sketches": None if sketches is None else SketchMatrix.of(sketches, self.sketch_dtype),
            "policy_version": policy_version,
            "projection": projection,
        }

    def score(
        self,
        problem_ids: Sequence[str],
        sketches: Any,
        policy_version: int,
        projection: Projection | None,
        **columns: Unpack[ScoreFields],
    ) -> Call[Ranking]:
        """`POST /score`."""
        common = self._common(columns.pop("request_id", None))
        rows = self._rows(problem_ids, sketches, policy_version, projection)
        request = ScoreRequest(**common, **rows, **columns)  # type: ignore[arg-type]
        return Call("POST", "/v1/score", Ranking.from_map, encode_request(request), MSGPACK)

    def refresh_validation(
        self,
        problem_ids: Sequence[str],
        sketches: Any,
        policy_version: int,
        projection: Projection | None,
        **columns: Unpack[RefreshFields],
    ) -> Call[RefreshReply]:
        """`POST /refresh_validation`."""
        common = self._common(columns.pop("request_id", None))
        rows = self._rows(problem_ids, sketches, policy_version, projection)
        request = RefreshRequest(**common, **rows, **columns)  # type: ignore[arg-type]
        return Call("POST", "/v1/refresh_validation", RefreshReply.from_map, encode_request(request), MSGPACK)

    def select(self, count: int, policy_version: int, **settings: Unpack[SelectFields]) -> Call[Selection]:
        """`POST /select`."""
        common = self._common(settings.pop("request_id", None))
        request = SelectRequest(**common, count=count, policy_version=policy_version, **settings)  # type: ignore[arg-type]
        # A pool's features are some hundred kilobytes, which JSON would make twice as long and many times slower to read.
        kind = JSON if request.features is None else MSGPACK
        return Call("POST", "/v1/select", Selection.from_map, [encode_value(request.header(), kind)], kind)

    def runs(self) -> Call[list[RunState]]:
        """`GET /runs`."""
        return Call("GET", "/v1/runs", lambda body: [RunState.from_map(row) for row in body["runs"]])

    def run(self) -> Call[RunState]:
        """`GET /runs/{run}`."""
        return Call("GET", self._path(), RunState.from_map)

    def problems(self, cursor: str | None, limit: int) -> Call[ProblemPage]:
        """`GET /runs/{run}/problems`."""
        query = httpx.QueryParams({"limit": limit, **({"cursor": cursor} if cursor else {})})
        return Call("GET", f"{self._path('problems')}?{query}", ProblemPage.from_map)

    def outline(self, ends: int, sample: int) -> Call[RankingOutline]:
        """`GET /runs/{run}/outline`."""
        return Call("GET", f"{self._path('outline')}?ends={ends}&sample={sample}", RankingOutline.from_map)

    def problem(self, problem_id: str) -> Call[ProblemState]:
        """`GET /runs/{run}/problems/{id}`."""
        return Call(
            "GET", self._path("problems", check_text("problem_id", problem_id, most=256)), ProblemState.from_map
        )

    def rounds(self, after: int, limit: int) -> Call[list[RoundRecord]]:
        """`GET /runs/{run}/rounds`."""
        path = f"{self._path('rounds')}?after={after}&limit={limit}"
        return Call("GET", path, lambda body: [RoundRecord.from_map(row) for row in body["rounds"]])

    def snapshot(self, name: str) -> Call[None]:
        """`POST /runs/{run}/snapshots/{name}`."""
        return self._write("POST", "snapshots", check_name("name", name))

    def restore(self, name: str) -> Call[None]:
        """`POST /runs/{run}/snapshots/{name}/restore`."""
        return self._write("POST", "snapshots", check_name("name", name), "restore")

    def delete_run(self) -> Call[None]:
        """`DELETE /runs/{run}`."""
        return self._write("DELETE")

    def health(self) -> Call[Mapping[str, Any]]:
        """`GET /health`."""
        return Call("GET", "/health", dict)

    def _write(self, method: str, *parts: str) -> Call[None]:
        query = "" if self.epoch is None else f"?epoch={self.epoch}"
        return Call(method, self._path(*parts) + query, _nothing)

    def _path(self, *parts: str) -> str:
        return "/".join(["/v1/runs", *map(_segment, (self.run_id, *parts))])


def _segment(part: str) -> str:
    """One segment of a path; a bare '.' or '..' would be taken for a step to another resource."""
    quoted = quote(part, safe="")
    return quoted.replace(".", "%2E") if part in (".", "..") else quoted
