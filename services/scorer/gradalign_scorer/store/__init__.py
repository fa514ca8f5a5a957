"""The curriculum's state in Redis: one fenced, idempotent script per kind of write."""

from gradalign_scorer.store.commits import RefreshCommit, ScoreCommit, SelectionCommit
from gradalign_scorer.store.embedded import EmbeddedServer
from gradalign_scorer.store.records import ProblemColumns, RunRecord, ValidationRecord
from gradalign_scorer.store.runs import RunStore

__all__ = [
    "EmbeddedServer",
    "ProblemColumns",
    "RefreshCommit",
    "RunRecord",
    "RunStore",
    "ScoreCommit",
    "SelectionCommit",
    "ValidationRecord",
]
