"""The HTTP routes, one module a noun. Each parses, calls the service or the store, and replies."""

from __future__ import annotations

from fastapi import APIRouter

from gradalign_scorer.routes import events, health, pages, runs, score, selection, snapshots, validation

__all__ = ["OPERATIONS", "WIRE"]

WIRE: tuple[APIRouter, ...] = (
    score.router,
    validation.router,
    selection.router,
    runs.router,
    events.router,
    snapshots.router,
)
OPERATIONS: tuple[APIRouter, ...] = (health.router, pages.router)
