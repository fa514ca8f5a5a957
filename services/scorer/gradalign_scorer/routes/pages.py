"""Pages for people: static and self-contained; what they show they fetch from the other routes."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from gradalign import NotFound
from gradalign.wire.checks import shown

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@cache
def _text(name: str) -> str:
    return (files("gradalign_scorer") / "pages" / name).read_text(encoding="utf-8")


@cache
def _policy(name: str) -> str:
    """Lets the page's own scripts and styles in, by their hashes, and nothing else: a run's or problem's name is text."""
    return (
        f"default-src 'self'; script-src {_allowed('script', name)}; style-src {_allowed('style', name)}; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def _allowed(tag: str, name: str) -> str:
    inline = re.findall(f"<{tag}>(.*?)</{tag}>", _text(name), re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline]
    return " ".join(["'self'", *(f"'sha256-{digest}'" for digest in digests)])


def _page(name: str) -> HTMLResponse:
    return HTMLResponse(_text(name), headers={**_HEADERS, "Content-Security-Policy": _policy(name)})


@cache
def _assets() -> dict[str, tuple[bytes, str, str]]:
    """Scripts and styles by their path under pages/: content, type and entity tag."""
    found = {}
    for name, file in _files(files("gradalign_scorer") / "pages", ""):
        kind = _TYPES.get(name[name.rfind(".") :])
        if kind:
            content = file.read_bytes()
            found[name] = content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return found


def _files(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


@router.get("/assets/{name:path}")
async def asset(request: Request, name: str) -> Response:
    """A script or style of a page; asked for again each time, since a newer scorer may have another."""
    if name not in _assets():
        raise NotFound(f"there is no {shown(name)} among the pages' scripts and styles.")
    content, kind, tag = _assets()[name]
    headers = {"ETag": tag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if request.headers.get("If-None-Match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)


@router.get("/")
async def index() -> HTMLResponse:
    """The dashboard."""
    return _page("index.html")


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The routes, from /openapi.json."""
    return _page("docs.html")
