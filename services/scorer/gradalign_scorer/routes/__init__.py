"""The HTTP routes, one module a noun. Each parses, calls the service or the store, and replies.

May import every room of the scorer. A change here keeps the wire of proto/README.md and its OpenAPI description.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter
from fastapi.routing import APIRoute

from gradalign_scorer.routes import events, health, pages, runs, scoring, snapshots

__all__ = ["OPERATIONS", "WIRE", "allowed_methods"]

WIRE: tuple[APIRouter, ...] = (
    scoring.router,
    runs.router,
    events.router,
    snapshots.router,
)
OPERATIONS: tuple[APIRouter, ...] = (health.router, pages.router)


def _of(routers: Iterable[APIRouter]) -> list[APIRoute]:
    return [route for router in routers for route in router.routes if isinstance(route, APIRoute)]


def _answer_head(routers: Iterable[APIRouter]) -> None:
    """Let every GET route answer HEAD, which the framework leaves out; the server drops the reply's body."""
    for router in routers:
        for route in _of([router]):
            if "GET" in (route.methods or ()):
                router.add_api_route(
                    route.path, route.endpoint, methods=["HEAD"], include_in_schema=False, response_model=None
                )


def allowed_methods(path: str) -> list[str]:
    """What a path takes, by all of its routes: the framework names those of the first alone."""
    inner = path.removeprefix("/v1") if path.startswith("/v1/") else path
    routes = [*((inner, route) for route in _of(WIRE)), *((path, route) for route in _of(OPERATIONS))]
    return sorted({method for at, route in routes if route.path_regex.match(at) for method in route.methods or ()})


_answer_head((*WIRE, *OPERATIONS))
