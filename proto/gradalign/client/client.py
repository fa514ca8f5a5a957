"""The client of the scorer, blocking and asynchronous.

    from gradalign import Client
    client = Client("http://scorer:8000", run_id="my-run")
    client.refresh_validation(problem_ids, sketches, policy_version=12, projection=sketcher.projection)
    ranking = client.score(problem_ids, sketches, policy_version=12, projection=sketcher.projection, select=256)
    ranking.selected
    # or, with the products of rollouts with the validation gradient instead of sketches:
    reply = client.refresh_validation(problem_ids, products=products, lengths=length, policy_version=12)
    ranking = client.score(problem_ids, products=products, products_version=reply.validation_version, policy_version=12)

Every request that changes something carries a request id: a retry is applied exactly once. Threads may share a `Client`,
and tasks an `AsyncClient`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self, TypeVar, Unpack

import httpx

from gradalign.client.calls import (
    Call,
    CallBuilder,
    RefreshFields,
    RetryPolicy,
    ScoreFields,
    SelectFields,
    unreachable,
)
from gradalign.client.endpoints import Address, Replicas, Tries, addresses_of
from gradalign.errors import UnavailableError
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

__all__ = ["AsyncClient", "Client"]

T = TypeVar("T")
_LIMITS = httpx.Limits(max_connections=32, max_keepalive_connections=8, keepalive_expiry=30.0)


class _Base:
    """Settings that both clients share; `Client` documents them."""

    def __init__(
        self,
        base_url: str | Sequence[str],
        *,
        run_id: str,
        api_key: str | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        epoch: int | None = None,
        timeout: float = 30.0,
        retries: int = 5,
        sketch_dtype: str | None = None,
        transport: Any = None,
    ) -> None:
        self._calls = CallBuilder(run_id, epoch, sketch_dtype)
        self._retry = RetryPolicy(retries=retries)
        self._transport = transport
        self._timeout = httpx.Timeout(timeout, connect=max(2.0, timeout / 10))
        key = api_key if api_key is not None else os.environ.get("GRADALIGN_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._replicas: Replicas[Any] = Replicas(addresses_of(base_url, ca_file), self._connect)

    def _connect(self, address: Address) -> Any:
        raise NotImplementedError

    @property
    def base_url(self) -> str:
        """The scorer in use: the first one until it fails."""
        return self._replicas.current()[1].base_url

    @property
    def run_id(self) -> str:
        """The training job this client speaks for."""
        return self._calls.run_id


class Client(_Base):
    """Blocking client of one run.

    Every method raises `RequestError` when the request cannot succeed as it was sent, and `UnavailableError` when the
    scorer is away past the retries. Nothing of a refused request is stored.

    Args:
        base_url: `http://host:port`, `https://host:port` or `unix:/path/to.sock`; or a list of them, of scorers that share a
            store: a request that one cannot serve goes to the next under the same request id, and later ones follow it.
        run_id: the training job; 1 to 128 letters, digits, '.', '_', '-'.
        api_key: sent as a bearer token; `GRADALIGN_API_KEY` from the environment where None.
        ca_file: PEM file of the authority to trust for `https://`, instead of the public ones; `GRADALIGN_CA_FILE` from the
            environment where None.
        epoch: fencing token: give each restart of a job a higher one, and its forgotten predecessor is refused.
        timeout: seconds to wait for a reply; connecting may take a tenth of it, at least 2 s.
        retries: tries after the first, of every URL each, when the scorer is away or overloaded; 0 for none.
        sketch_dtype: `int8` or `float32` turns sketches into that before they are sent; None sends them as they are.
        transport: an httpx transport, for tests and proxies of one's own.
    """

    def _connect(self, address: Address) -> httpx.Client:
        return httpx.Client(
            base_url=address.base_url,
            transport=self._transport or httpx.HTTPTransport(uds=address.uds, verify=address.verify, limits=_LIMITS),
            timeout=self._timeout,
            headers=self._headers,
        )

    def _send(self, call: Call[T]) -> T:
        tries = Tries(self._replicas, self._retry, call)
        while True:
            at, address, http = self._replicas.current()
            try:
                return call.read(self._exchange(call, address, http))
            except UnavailableError as error:
                delay = tries.next_delay(at, error)
                if delay is None:
                    raise
            time.sleep(delay)

    def _exchange(self, call: Call[Any], address: Address, http: httpx.Client) -> httpx.Response:
        content = call.chunks() if call.parts else None
        try:
            return http.request(call.method, call.path, content=content, headers=call.headers)
        except httpx.TransportError as error:
            raise unreachable(call, address.base_url, error) from error

    def refresh_validation(
        self,
        problem_ids: Sequence[str],
        sketches: Any = None,
        *,
        policy_version: int,
        projection: Projection | None = None,
        **columns: Unpack[RefreshFields],
    ) -> RefreshReply:
        """Replace the validation gradient.

        Args:
            problem_ids: distinct ids of the validation problems.
            sketches: [problems, dim], numpy, torch (any device), lists or a `SketchMatrix`; None with products.
            policy_version: the weights the gradients were taken at.
            projection: how the sketches were made, `sketcher.projection`; None without sketches.
            columns: as `RefreshRequest` documents them.
        """
        return self._send(self._calls.refresh_validation(problem_ids, sketches, policy_version, projection, **columns))

    def score(
        self,
        problem_ids: Sequence[str],
        sketches: Any = None,
        *,
        policy_version: int,
        projection: Projection | None = None,
        **columns: Unpack[ScoreFields],
    ) -> Ranking:
        """Rank candidate problems, best first.

        Args:
            problem_ids: distinct ids of the candidates.
            sketches: [problems, dim], numpy, torch (any device), lists or a `SketchMatrix`; None with products.
            policy_version: the weights the gradients were taken at.
            projection: how the sketches were made, `sketcher.projection`; None without sketches.
            columns: as `ScoreRequest` documents them; `select=n` also marks the best n as selected.
        """
        return self._send(self._calls.score(problem_ids, sketches, policy_version, projection, **columns))

    def select(self, count: int, *, policy_version: int, **settings: Unpack[SelectFields]) -> Selection:
        """Pick `count` problems from the stored priorities of all rounds; `SelectRequest` documents the settings."""
        return self._send(self._calls.select(count, policy_version, **settings))

    def runs(self) -> list[RunState]:
        """All runs that the scorer holds."""
        return self._send(self._calls.runs())

    def run(self) -> RunState:
        """What the scorer holds of this run; `NotFound` before its first request."""
        return self._send(self._calls.run())

    def problems(self, *, cursor: str | None = None, limit: int = 100) -> ProblemPage:
        """A page of problems by priority; pass `page.next` as the cursor of the next."""
        return self._send(self._calls.problems(cursor, limit))

    def outline(self, *, ends: int = 10, sample: int = 0) -> RankingOutline:
        """The first and last `ends` problems of the ranking, and `sample` evenly spaced ones (at most 100 and 500)."""
        return self._send(self._calls.outline(ends, sample))

    def problem(self, problem_id: str) -> ProblemState:
        """One problem with its history."""
        return self._send(self._calls.problem(problem_id))

    def rounds(self, *, after: int = 0, limit: int = 100) -> list[RoundRecord]:
        """Committed requests with a number above `after`, oldest first."""
        return self._send(self._calls.rounds(after, limit))

    def snapshot(self, name: str) -> None:
        """Keep a copy of the run's curriculum under a name, replacing an earlier one of that name."""
        self._send(self._calls.snapshot(name))

    def restore(self, name: str) -> None:
        """Put the run's curriculum back to a snapshot."""
        self._send(self._calls.restore(name))

    def delete_run(self) -> None:
        """Forget the run, its snapshots included."""
        self._send(self._calls.delete_run())

    def health(self) -> Mapping[str, Any]:
        """The scorer's own account of itself."""
        return self._send(self._calls.health())

    def close(self) -> None:
        """Close the connections."""
        for http in self._replicas.all:
            http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Base):
    """Asynchronous client of one run; arguments, methods and errors are those of `Client`."""

    def _connect(self, address: Address) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=address.base_url,
            transport=self._transport
            or httpx.AsyncHTTPTransport(uds=address.uds, verify=address.verify, limits=_LIMITS),
            timeout=self._timeout,
            headers=self._headers,
        )

    async def _send(self, call: Call[T]) -> T:
        tries = Tries(self._replicas, self._retry, call)
        while True:
            at, address, http = self._replicas.current()
            try:
                return call.read(await self._exchange(call, address, http))
            except UnavailableError as error:
                delay = tries.next_delay(at, error)
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    async def _exchange(self, call: Call[Any], address: Address, http: httpx.AsyncClient) -> httpx.Response:
        async def chunks() -> AsyncIterator[bytes]:
            for chunk in call.chunks():
                yield chunk

        content = chunks() if call.parts else None
        try:
            return await http.request(call.method, call.path, content=content, headers=call.headers)
        except httpx.TransportError as error:
            raise unreachable(call, address.base_url, error) from error

    async def refresh_validation(
        self,
        problem_ids: Sequence[str],
        sketches: Any = None,
        *,
        policy_version: int,
        projection: Projection | None = None,
        **columns: Unpack[RefreshFields],
    ) -> RefreshReply:
        """Replace the validation gradient; arguments as in `Client.refresh_validation`."""
        return await self._send(
            self._calls.refresh_validation(problem_ids, sketches, policy_version, projection, **columns)
        )

    async def score(
        self,
        problem_ids: Sequence[str],
        sketches: Any = None,
        *,
        policy_version: int,
        projection: Projection | None = None,
        **columns: Unpack[ScoreFields],
    ) -> Ranking:
        """Rank candidate problems, best first; arguments as in `Client.score`."""
        return await self._send(self._calls.score(problem_ids, sketches, policy_version, projection, **columns))

    async def select(self, count: int, *, policy_version: int, **settings: Unpack[SelectFields]) -> Selection:
        """Pick `count` problems from the stored priorities of all rounds; `SelectRequest` documents the settings."""
        return await self._send(self._calls.select(count, policy_version, **settings))

    async def runs(self) -> list[RunState]:
        """All runs that the scorer holds."""
        return await self._send(self._calls.runs())

    async def run(self) -> RunState:
        """What the scorer holds of this run; `NotFound` before its first request."""
        return await self._send(self._calls.run())

    async def problems(self, *, cursor: str | None = None, limit: int = 100) -> ProblemPage:
        """A page of problems by priority; pass `page.next` as the cursor of the next."""
        return await self._send(self._calls.problems(cursor, limit))

    async def outline(self, *, ends: int = 10, sample: int = 0) -> RankingOutline:
        """The ranking at a glance; arguments as in `Client.outline`."""
        return await self._send(self._calls.outline(ends, sample))

    async def problem(self, problem_id: str) -> ProblemState:
        """One problem with its history."""
        return await self._send(self._calls.problem(problem_id))

    async def rounds(self, *, after: int = 0, limit: int = 100) -> list[RoundRecord]:
        """Committed requests with a number above `after`, oldest first."""
        return await self._send(self._calls.rounds(after, limit))

    async def snapshot(self, name: str) -> None:
        """Keep a copy of the run's curriculum under a name, replacing an earlier one of that name."""
        await self._send(self._calls.snapshot(name))

    async def restore(self, name: str) -> None:
        """Put the run's curriculum back to a snapshot."""
        await self._send(self._calls.restore(name))

    async def delete_run(self) -> None:
        """Forget the run, its snapshots included."""
        await self._send(self._calls.delete_run())

    async def health(self) -> Mapping[str, Any]:
        """The scorer's own account of itself."""
        return await self._send(self._calls.health())

    async def aclose(self) -> None:
        """Close the connections."""
        for http in self._replicas.all:
            await http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
