"""The curriculum's state in Redis: one fenced, idempotent script per kind of write.

May import the ranking's features and nothing of HTTP. A change here keeps: one script a write, no acknowledged write lost.
"""

from gradalign_scorer.store.commits import Commit, RefreshCommit, ScoreCommit, SelectionCommit
from gradalign_scorer.store.embedded.valkey import EmbeddedServer, EmbeddedServerError
from gradalign_scorer.store.records.problems import ProblemColumns
from gradalign_scorer.store.records.runs import RunRecord
from gradalign_scorer.store.records.validations import ValidationRecord
from gradalign_scorer.store.refusals import (
    ValidationGoneError,
    VersionTakenError,
    alignment_kind_mismatch,
    features_mismatch,
    fenced,
    kind_mismatch,
    projection_mismatch,
    run_not_found,
    stale_policy,
)
from gradalign_scorer.store.runs import RunStore
from gradalign_scorer.store.server.waiting import Wait

__all__ = [
    "Commit",
    "EmbeddedServer",
    "EmbeddedServerError",
    "ProblemColumns",
    "RefreshCommit",
    "RunRecord",
    "RunStore",
    "ScoreCommit",
    "SelectionCommit",
    "ValidationGoneError",
    "ValidationRecord",
    "VersionTakenError",
    "Wait",
    "alignment_kind_mismatch",
    "features_mismatch",
    "fenced",
    "kind_mismatch",
    "projection_mismatch",
    "run_not_found",
    "stale_policy",
]
