"""The first thing that a request meets: the API key, before anything is read or looked up."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gradalign import Unauthorized
from gradalign_scorer.negotiation import error_response

__all__ = ["OPEN_PATHS", "KeyGate"]

# Probes cannot send a key, and the pages hold no data: what they show they fetch, with the key.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/", "/docs", "/openapi.json"})


class KeyGate:
    """ASGI middleware that answers 401 to a request without an accepted key, on every path but OPEN_PATHS.

    Args:
        app: what stands behind it.
        keys: accepted keys; none lets everyone pass.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[bytes]) -> None:
        self._app = app
        self._keys = tuple(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or not self._keys or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("Authorization")
        if given is not None and self._accepts(given):
            await self._app(scope, receive, send)
            return
        fault = "no API key was sent" if given is None else "the API key is not one that this scorer accepts"
        error = Unauthorized(
            f"{fault}; send the header 'Authorization: Bearer KEY' with a key of the scorer's GRADALIGN_API_KEY (the Python "
            "client takes api_key=, or GRADALIGN_API_KEY from its own environment).",
            param="Authorization",
        )
        await error_response(scope, error)(scope, receive, send)

    def _accepts(self, header: str) -> bool:
        scheme, _, key = header.partition(" ")
        given = key.strip().encode("latin-1", "replace")
        # Every key is compared whole, so the time taken says nothing about them.
        matches = [hmac.compare_digest(given, accepted) for accepted in self._keys]
        return scheme.lower() == "bearer" and any(matches)
