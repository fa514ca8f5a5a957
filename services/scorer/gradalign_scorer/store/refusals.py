"""Why the store refuses a request, in words for whoever sent it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from gradalign import (
    FeaturesMismatch,
    Fenced,
    KindMismatch,
    NotFound,
    ProjectionMismatch,
    RequestIdReused,
    StalePolicy,
)
from gradalign_scorer.ranking.predictor import width_of
from gradalign_scorer.store.commits import Commit, RefreshCommit, ScoreCommit
from gradalign_scorer.store.records.runs import kind_of

__all__ = [
    "ValidationGoneError",
    "VersionTakenError",
    "alignment_kind_mismatch",
    "commit_refusal",
    "features_mismatch",
    "fenced",
    "kind_mismatch",
    "projection_mismatch",
    "request_id_reused",
    "run_not_found",
    "snapshot_not_found",
    "stale_policy",
]


class VersionTakenError(Exception):
    """Another refresh took the validation version; compute the commit again for the next one."""


class ValidationGoneError(Exception):
    """The run no longer holds the validation gradient that was scored against; compute the commit again with the current."""


def run_not_found(run_id: str) -> NotFound:
    """The error for a run never seen."""
    return NotFound(
        f"there is no run {run_id!r}; a run begins with its first /refresh_validation or /score. GET /runs lists them.",
        param="run_id",
    )


def snapshot_not_found(run_id: str, name: str) -> NotFound:
    """The error for a snapshot never taken."""
    return NotFound(
        f"run {run_id!r} has no snapshot {name!r}; take one by POST /runs/{run_id}/snapshots/{name}.", param="name"
    )


def fenced(epoch: int | None, seen: int | str) -> Fenced:
    """The error for a writer that a newer one has replaced."""
    return Fenced(
        f"epoch {epoch} was sent and the run has seen epoch {seen}: another process has taken this run over. Stop this "
        "one, or start it again with a higher epoch.",
        param="epoch",
    )


def stale_policy(sent: int, seen: int | str) -> StalePolicy:
    """The error for a policy version that went backwards."""
    return StalePolicy(
        f"policy_version {sent} was sent and the run has seen {seen}; versions may not go backwards. After resuming from "
        "a checkpoint, restore the curriculum snapshot taken with it, or use another run_id.",
        param="policy_version",
    )


def projection_mismatch(sent: dict[str, Any], held: dict[str, Any]) -> ProjectionMismatch:
    """The error for sketches made in another way than the run's."""
    different = sorted(key for key in held if held[key] != sent.get(key) and key != "id")
    return ProjectionMismatch(
        f"the sketches were made with {', '.join(f'{key}={sent[key]}' for key in different)}; the run's with "
        f"{', '.join(f'{key}={held[key]}' for key in different)}. Use the run's projection, or another run_id: such "
        "sketches cannot be compared. (Other `parameters` mean that the set of trainable parameters changed.)",
        param="projection",
    )


_ALONE = {"pass_rates": "pass_rates alone"}


def kind_mismatch(sent: str, held: str, run_id: str) -> KindMismatch:
    """The error for sketches, products or pass rates alone in a run of another of these."""
    sending, holding = _ALONE.get(sent, sent), _ALONE.get(held, held)
    return KindMismatch(
        f"{sending} were sent and run {run_id!r} is a run of {holding}; a run is of one kind, since what it remembers is. "
        f"Send {holding}, or begin another run_id with {sending} (or delete this one).",
        param=sent,
    )


_MADE_OF = {
    "cosine": "cosines (products with exact norms)",
    "product": "products (without norms)",
    "head": "products over norms of the head (norms_kind 'head')",
}


def alignment_kind_mismatch(sent: str, held: str) -> KindMismatch:
    """The error for alignments of another kind than the run's."""
    return KindMismatch(
        f"the alignments of this request are {_MADE_OF[sent]}; the run's are {_MADE_OF[held]}. They cannot be compared: "
        "send norms of the run's kind, or none, as its first /score did, or use another run_id.",
        param="norms_kind" if "head" in (sent, held) else "norms",
    )


def features_mismatch(sent: int, held: int) -> FeaturesMismatch:
    """The error for features of another width than the run's."""
    return FeaturesMismatch(
        f"features have {sent} numbers a problem and the run's have {held}: what was learned of those says nothing about "
        "these. Send the features that the run began with, leave them out, or use another run_id.",
        param="features",
    )


def request_id_reused(request_id: str | None) -> RequestIdReused:
    """The error for an id that belongs to another request."""
    return RequestIdReused(
        f"request_id {request_id!r} was used before, for a request with another content; give every request an id of "
        "its own, and a retry the id and the content of its first try.",
        param="request_id",
        request_id=request_id,
    )


def commit_refusal(status: str, details: list[str], commit: Commit) -> Exception:
    """The error for the status word of a commit's script."""
    if status == "projection_mismatch" and isinstance(commit, ScoreCommit | RefreshCommit):
        if commit.projection is None or not details[0]:
            return kind_mismatch(commit.kind, kind_of(details[1]), commit.run_id)
        return projection_mismatch(commit.projection.to_map(), json.loads(details[0]))
    if status == "alignment_kind_mismatch" and isinstance(commit, ScoreCommit):
        return alignment_kind_mismatch(commit.alignment_kind or "", details[0])
    if status == "features_mismatch" and isinstance(commit, ScoreCommit) and commit.moments is not None:
        return features_mismatch(commit.moments.width, width_of(int(details[0])))
    refusals: dict[str, Callable[[], Exception]] = {
        "version_taken": VersionTakenError,
        "validation_gone": ValidationGoneError,
        "fenced": lambda: fenced(commit.epoch, details[0]),
        "stale_policy": lambda: stale_policy(commit.policy_version, details[0]),
        "request_id_reused": lambda: request_id_reused(commit.request_id),
        "not_found": lambda: run_not_found(commit.run_id),
    }
    return refusals[status]()
