"""Pages for people: static and self-contained; what they show they fetch from the other routes."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import HTMLResponse

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@cache
def _text(name: str) -> str:
    return (files("gradalign_scorer") / "pages" / name).read_text(encoding="utf-8")


@cache
def _policy(name: str) -> str:
    """Lets the page's own scripts run, by their hashes, and nothing else: what a run's or problem's name holds is text."""
    digests = [hashlib.sha256(script.encode()).digest() for script in _SCRIPT.findall(_text(name))]
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


def _page(name: str) -> HTMLResponse:
    return HTMLResponse(_text(name), headers={**_HEADERS, "Content-Security-Policy": _policy(name)})


@router.get("/")
async def index() -> HTMLResponse:
    """The runs, at a glance."""
    return _page("index.html")


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The routes, from /openapi.json."""
    return _page("docs.html")
