"""What a request must agree with its run in, before anything is computed: the commit would refuse it afterwards."""

from __future__ import annotations

from gradalign import RefreshRequest, ScoreRequest, Unavailable, ValidationMismatch
from gradalign_scorer.ranking.products import alignment_kind
from gradalign_scorer.store import (
    RunRecord,
    ValidationRecord,
    alignment_kind_mismatch,
    fenced,
    kind_mismatch,
    projection_mismatch,
    stale_policy,
)

__all__ = ["TRIES", "check_clock", "check_run", "check_version", "outrun"]

TRIES = 5
"""Of a request whose validation gradient another writer replaces while it is computed."""
_ADVICE = {
    "dots_version": "take the products with the gradient of the latest /refresh_validation, and send the version of its "
    "reply. Or leave dots out: the sketches alone will do.",
    "products_version": "take them with the gradient of the latest /refresh_validation, and send the version of its reply.",
    "decay_version": "the sum that you keep is of another gradient. Begin it anew, and send a refresh without decay.",
}


def outrun(run_id: str) -> Unavailable:
    """The error of a request that was overtaken each time it was computed."""
    return Unavailable(
        f"other writers replaced the validation gradient of run {run_id!r} {TRIES} times while this request was computed; "
        "retry, and let one process of a run refresh it.",
        retry_after=1.0,
    )


def check_clock(epoch: int | None, policy_version: int, run: RunRecord) -> None:
    """Fenced or StalePolicy where the run has seen a later trainer or policy."""
    if epoch is not None and epoch < run.epoch:
        raise fenced(epoch, run.epoch)
    if policy_version < run.policy_version:
        raise stale_policy(policy_version, run.policy_version)


def check_run(request: ScoreRequest | RefreshRequest, run: RunRecord | None) -> None:
    """Refuse before computing what the commit would refuse after it."""
    if run is None:
        return
    check_clock(request.epoch, request.policy_version, run)
    if run.kind is not None and run.kind != request.kind:
        raise kind_mismatch(request.kind, run.kind, request.run_id)
    held = run.projection
    if held is not None and request.projection is not None and run.projection_id != request.projection.id:
        raise projection_mismatch(request.projection.to_map(), held)
    if isinstance(request, ScoreRequest) and run.alignment_kind not in (None, alignment_kind(request)):
        raise alignment_kind_mismatch(alignment_kind(request), run.alignment_kind)


def check_version(param: str, sent: int | None, validation: ValidationRecord | None, run_id: str) -> None:
    """ValidationMismatch where the version that a request names, by one of `_ADVICE`, is not the run's."""
    held = validation.version if validation else None
    if sent is None or sent == held:
        return
    state = "holds no validation gradient" if held is None else f"is at validation version {held}"
    raise ValidationMismatch(f"{param} is {sent} and run {run_id!r} {state}; {_ADVICE[param]}", param=param)
