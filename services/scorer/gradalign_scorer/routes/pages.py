"""Pages for people: static and self-contained; what they show they fetch from the other routes."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import HTMLResponse

__all__ = ["router"]

router = APIRouter(include_in_schema=False)

_POLICY = {"Content-Security-Policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'"}


def _page(name: str) -> HTMLResponse:
    text = (files("gradalign_scorer") / "pages" / name).read_text(encoding="utf-8")
    return HTMLResponse(text, headers=_POLICY)


@router.get("/")
async def index() -> HTMLResponse:
    """The runs, at a glance."""
    return _page("index.html")


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The routes, from /openapi.json."""
    return _page("docs.html")
