"""Checkpoints that resume bit for bit, and never half-written.

A checkpoint is a folder `round-000012`: the policy in Hugging Face form, `optimizer.pt` (read back with
`weights_only=True`, so that no code in it can run) and `state.json`. It is written beside its place, then renamed.
Every random choice of the loop is drawn from (seed, round, purpose), so no generator has a state to keep.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign.errors import GradAlignError

__all__ = ["CheckpointError", "RunState", "latest_checkpoint", "load_optimizer", "load_state", "save_checkpoint"]

_FOLDER = re.compile(r"round-(\d{6})")


class CheckpointError(GradAlignError):
    """A checkpoint is missing, damaged or of another run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands, beside its weights and optimizer.

    Attributes:
        run_id: of the run.
        round_number: rounds done.
        policy_version: optimizer steps done.
        fallbacks: rounds that chose at random although the scorer was to choose.
        snapshot: name of the curriculum snapshot; None where there is none.
        projection: id of the projection of the sketches.
        costs: what the run has spent, as `Costs.state` gives it; empty in checkpoints that know nothing of it.
        fallback_reasons: of `fallbacks`, how many for which reason; empty likewise.
    """

    run_id: str
    round_number: int
    policy_version: int
    fallbacks: int
    snapshot: str | None
    projection: str
    costs: dict[str, float] = field(default_factory=dict)
    fallback_reasons: dict[str, int] = field(default_factory=dict)


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    found = ((_FOLDER.fullmatch(path.name), path) for path in folder.glob("round-*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder; None where there is none."""
    numbered = _numbered(folder)
    return numbered[-1][1] if numbered else None


def save_checkpoint(
    folder: Path,
    state: RunState,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Write a checkpoint and drop the oldest beyond `keep`; its folder.

    Args:
        folder: of all checkpoints of the run.
        state: where the run stands.
        model: the policy.
        tokenizer: its tokenizer.
        training: state dicts of the optimizer and the scheduler.
        keep: how many to keep, at least 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"round-{state.round_number:06d}"
    temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=folder))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        torch.save(training, temporary / "optimizer.pt")
        (temporary / "state.json").write_text(json.dumps(asdict(state), indent=2))
        if place.exists():  # out of sight before it is taken apart
            os.replace(place, temporary.with_name(f"{temporary.name}-old"))
        os.replace(temporary, place)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(temporary.with_name(f"{temporary.name}-old"), ignore_errors=True)
    for _, old in _numbered(folder)[:-keep]:
        shutil.rmtree(old)
    return place


def load_state(checkpoint: Path) -> RunState:
    """Where the run of a checkpoint stood; `CheckpointError` where its `state.json` does not say."""
    try:
        return RunState(**json.loads((checkpoint / "state.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint} is no checkpoint of this version ({error}); expected a folder with a readable state.json. "
            "Name another checkpoint, or remove it to resume from the one before."
        ) from error


def load_optimizer(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """State dicts of the optimizer and the scheduler; `CheckpointError` where the file is missing or damaged."""
    try:
        training: dict[str, Any] = torch.load(checkpoint / "optimizer.pt", map_location=device, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError and others for damaged files
        raise CheckpointError(
            f"{checkpoint / 'optimizer.pt'} cannot be read ({error}). "
            f"Remove {checkpoint} to resume from the one before."
        ) from error
    return training
