"""The first thing that a request meets: the API key, before anything is read or looked up."""

from __future__ import annotations

import base64
import binascii

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gradalign import RequestError, Unauthorized
from gradalign_scorer.access.keyring import KeyRing
from gradalign_scorer.access.scopes import READING, Access, grant
from gradalign_scorer.http.negotiation import error_response

__all__ = ["OPEN_PATHS", "KeyGate"]

# Orchestrators and load balancers cannot send a key.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
_EVERYTHING = Access()
_ADVICE = (
    "send the header 'Authorization: Bearer KEY' with a key of the scorer's GRADALIGN_API_KEY or GRADALIGN_API_KEY_FILE "
    "(the Python client takes api_key=, or GRADALIGN_API_KEY from its own environment)"
)


class KeyGate:
    """ASGI middleware that refuses a request without an accepted key, on every path but OPEN_PATHS.

    A browser cannot send a bearer token when it opens a page, so reads also take the key as the password of HTTP Basic,
    whatever the user name. Writes do not: a browser adds remembered Basic credentials to forms of foreign sites too.

    Args:
        app: what stands behind it.
        keys: accepted keys; none lets everyone pass.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with what its key may do, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            grant(scope, self._access(scope))
        except RequestError as error:
            reply = error_response(scope, error)
            if error.status == 401:
                reply.headers["WWW-Authenticate"] = _challenge(scope)
            await reply(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _access(self, scope: Scope) -> Access:
        if not self._keys.required or scope["path"] in OPEN_PATHS:
            return _EVERYTHING
        given = Headers(scope=scope).get("Authorization")
        if given is None:
            raise Unauthorized(f"no API key was sent; {_ADVICE}.", param="Authorization")
        access = self._keys.access(_key(given, scope["method"]))
        if access is None:
            raise Unauthorized(
                f"the API key is not one that this scorer accepts; {_ADVICE}.",
                param="Authorization",
            )
        access.check_method(scope["method"])
        return access


def _key(header: str, method: str) -> bytes:
    """The key in an Authorization header."""
    scheme, _, credentials = header.strip().partition(" ")
    kind, credentials = scheme.lower(), credentials.strip()
    if kind == "basic" and method in READING:
        try:
            return base64.b64decode(credentials, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    if kind != "bearer":
        known = " (Basic, for browsers, is taken for reading only)" if kind == "basic" else ""
        raise Unauthorized(
            f"the Authorization header is not of the kind Bearer{known}; {_ADVICE}.", param="Authorization"
        )
    return credentials.encode("latin-1", "replace")


def _challenge(scope: Scope) -> str:
    """A browser that opens a page is to ask for the key; everything else is to send a bearer token."""
    opens_page = "text/html" in Headers(scope=scope).get("Accept", "") and scope["method"] in READING
    return 'Basic realm="GradAlign: any name, the API key as password", charset="UTF-8"' if opens_page else "Bearer"
