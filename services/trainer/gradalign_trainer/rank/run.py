"""`run_ranking`: from files to files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign import Client
from gradalign.errors import GradAlignError
from gradalign_trainer.curriculum.localscorer import local_scorer
from gradalign_trainer.grpo.models import load_policy, pick_device
from gradalign_trainer.rank.gradient import REFERENCE_EPSILON
from gradalign_trainer.rank.ledger import Ledger
from gradalign_trainer.rank.measure import POOLED, Encoded, Measurer, encode_file
from gradalign_trainer.rank.outputs import ProblemFile, read_problem_file, write_lines, write_selected
from gradalign_trainer.rank.responses import GroupId, ResponseFile, read_responses, wire_id
from gradalign_trainer.rank.scoring import Columns, Scored, rank_order, score, spearman
from gradalign_trainer.rank.settings import RankSettings
from gradalign_trainer.reporting.progress import TellsProgress, no_progress

__all__ = ["RankReport", "run_ranking"]

BY_PRIORITY = ("cosine", "dot", "norm", "learnalign")
"""Strategies whose priority is what the reference writes as `similarity`; of others that is the alignment."""
SHOWN = 10
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RankReport:
    """What a ranking did.

    Attributes:
        groups: candidates ranked.
        no_signal: of them, those whose responses all got the same reward.
        bad: records left out of all files.
        left_out: groups that the problems file does not have.
        measured: gradients taken now; the rest were there from before.
        coherence: of the validation groups; None where they were pooled here.
        reliability: expected correlation of sketched with exact alignments.
        advised_dim: the dim that would do, where `reliability` is low.
        spearman: of sketched with exact alignments over the groups with a signal; None without `exact`.
        selected: ids best first.
        files: what was written.
    """

    groups: int
    no_signal: int
    bad: int
    left_out: int
    measured: int
    coherence: float | None
    reliability: float | None
    advised_dim: int | None
    spearman: float | None
    selected: Sequence[GroupId]
    files: Sequence[Path]


@dataclass(frozen=True, slots=True)
class _Parts:
    train: Encoded
    validation: Encoded | None


def run_ranking(settings: RankSettings, *, progress: TellsProgress = no_progress) -> RankReport:
    """Read the files, take the gradients, ask the scorer, write the files.

    Raises:
        GradAlignError: files, settings or scorer do not fit.
    """
    train = _read(settings.train, progress)
    validation = None if settings.validation is None else _read(settings.validation, progress)
    problems = None if settings.problems is None else _problems(settings.problems, settings.duplicates)
    bad = sum(len(file.bad) for file in (train, validation, problems) if file is not None)
    train, left_out = _only_known(train, problems)
    model, tokenizer = _policy(settings)
    state = settings.measured()
    ledger = Ledger(settings.progress, state, settings.dim, resume=settings.resume)
    before = len(ledger)
    measurer = Measurer(model, settings, ledger, progress)
    try:
        parts = _measure(settings, measurer, (train, validation), tokenizer, progress)
        with _scorer(settings, state) as client:
            scored = _score(settings, measurer, client, ledger, parts)
    finally:
        ledger.close()
    selected, files = _write(settings, train, scored, problems, ledger)
    report = RankReport(
        groups=len(train.groups),
        no_signal=sum(not group.signal for group in train.groups),
        bad=bad,
        left_out=left_out,
        measured=len(ledger) - before,
        coherence=scored.refresh.coherence if scored.refresh and settings.against is None else None,
        reliability=scored.reliability,
        advised_dim=scored.advised_dim,
        spearman=_spearman(ledger, train) if settings.exact and settings.against else None,
        selected=selected,
        files=files,
    )
    ledger.remove()
    return report


def _policy(settings: RankSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        return load_policy(settings.model, device=pick_device(settings.device), dtype=settings.dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise GradAlignError(
            f"--model {settings.model} cannot be loaded on --device {settings.device}: {error}\nExpected the folder or hub "
            "id of a causal LM in Hugging Face form with its tokenizer, and auto, cpu, cuda or cuda:N."
        ) from error


def _read(path: Path, progress: TellsProgress) -> ResponseFile:
    file = read_responses(path, progress=progress)
    if file.bad:
        listing = "".join(f"\n  {each}" for each in file.bad[:SHOWN])
        more = f"\n  and {len(file.bad) - SHOWN} more" if len(file.bad) > SHOWN else ""
        logger.warning("%s: left out %d of %d records:%s%s", path, len(file.bad), file.records, listing, more)
    return file


def _problems(path: Path, duplicates: str) -> ProblemFile:
    file = read_problem_file(path, drop_duplicates=duplicates == "drop")
    if file.dropped:
        logger.warning(
            "%s: dropped %d of %d problems, which repeat the extra_info.index of an earlier one.",
            path,
            file.dropped,
            file.dropped + len(file.records),
        )
    for each in file.bad[:SHOWN]:
        logger.warning("left out: %s", each)
    return file


def _only_known(train: ResponseFile, problems: ProblemFile | None) -> tuple[ResponseFile, int]:
    """Without the groups that the problems file lacks, as the reference does; how many those are."""
    if problems is None:
        return train, 0
    known = tuple(group for group in train.groups if group.group_id in problems.records)
    left_out = len(train.groups) - len(known)
    if not known:
        problems.check(group.group_id for group in train.groups)
    if left_out:
        logger.warning("%s: left out %d groups that %s does not have.", train.path, left_out, problems.path)
    return replace(train, groups=known), left_out


def _measure(
    settings: RankSettings,
    measurer: Measurer,
    files: tuple[ResponseFile, ResponseFile | None],
    tokenizer: PreTrainedTokenizerBase,
    progress: TellsProgress,
) -> _Parts:
    train, validation = files
    encoded = encode_file(train, tokenizer, settings, progress=progress)
    trusted = None if validation is None else encode_file(validation, tokenizer, settings, progress=progress)
    against = None
    if settings.against is not None:
        against = measurer.pooled(encoded if settings.against == settings.train or trusted is None else trusted)
    elif trusted is not None:
        measurer.groups("validation", trusted)
    measurer.groups("train", encoded, against)
    return _Parts(encoded, trusted)


def _score(settings: RankSettings, measurer: Measurer, client: Client, ledger: Ledger, parts: _Parts) -> Scored:
    exact = settings.against is not None
    candidates = _columns(ledger, "train", parts.train, exact=exact)
    validation = None
    if exact:
        sketch = ledger[f"validation/{POOLED}"][1][None]
        validation = Columns([POOLED], sketch, tokens=[1], rollouts=[1])
    elif parts.validation is not None:
        validation = _columns(ledger, "validation", parts.validation, exact=False)
    if exact and settings.rule.name == "reference":
        candidates = _with_epsilon(candidates, ledger)
    # Exact LearnAlign is the cosine with the candidates' own pooled gradient, which is what was taken as validation.
    strategy = "cosine" if exact and settings.strategy == "learnalign" else settings.strategy
    return score(client, measurer.sketcher.projection, strategy, candidates, validation)


def _columns(ledger: Ledger, part: str, encoded: Encoded, *, exact: bool) -> Columns:
    kept = [ledger[f"{part}/{group.group_id}"] for group in encoded.groups]
    means = [float(np.mean(group.rewards)) for group in encoded.groups]
    return Columns(
        ids=[wire_id(group.group_id) for group in encoded.groups],
        sketches=np.stack([row for _, row in kept]),
        tokens=encoded.tokens,
        rollouts=[len(group.rewards) for group in encoded.groups],
        pass_rates=[min(max(mean, 0.0), 1.0) for mean in means] if part == "train" else None,
        dots=[measurement.dot for measurement, _ in kept] if exact else None,
        norms=[measurement.norm for measurement, _ in kept] if exact else None,
    )


def _with_epsilon(columns: Columns, ledger: Ledger) -> Columns:
    """As the reference divides: by norms plus 1e-5, of the candidate and of the validation gradient."""
    assert columns.dots is not None
    assert columns.norms is not None
    # The validation gradient's own norm is in the ledger's measurement of it.
    length = ledger[f"validation/{POOLED}"][0].norm
    shrunk = [dot * length / (length + REFERENCE_EPSILON) for dot in columns.dots]
    return replace(columns, dots=shrunk, norms=[norm + REFERENCE_EPSILON if norm else 0.0 for norm in columns.norms])


@contextmanager
def _scorer(settings: RankSettings, state: Mapping[str, Any]) -> Iterator[Client]:
    digest = hashlib.sha256(json.dumps([state, settings.strategy], sort_keys=True).encode()).hexdigest()
    with (
        nullcontext(settings.url) if settings.url else local_scorer() as url,
        Client(url, run_id=f"rank-{digest[:16]}", sketch_dtype=settings.sketch_dtype) as client,
    ):
        yield client


def _write(
    settings: RankSettings, train: ResponseFile, scored: Scored, problems: ProblemFile | None, ledger: Ledger
) -> tuple[list[GroupId], list[Path]]:
    groups = {wire_id(group.group_id): group for group in train.groups}
    for problem_id, reason in scored.rejected.items():
        logger.warning("group %s was left out by the scorer: %s", groups[problem_id].group_id, reason)
    known = [(key, group) for key, group in groups.items() if key in scored.priorities]
    values = scored.priorities if settings.strategy in BY_PRIORITY else scored.alignments
    similarity = {
        group.group_id: {
            "group_id": group.group_id,
            "similarity": values[key],
            "loss": ledger[f"train/{group.group_id}"][0].loss,
        }
        for key, group in known
    }
    write_lines(settings.out, similarity.values())
    write_lines(
        settings.accuracy,
        (
            {
                "group_id": group.group_id,
                "total": len(group.rewards),
                "correct": sum(reward > 0 for reward in group.rewards),
                "accuracy": float(np.mean(group.rewards)),
                "similarity": similarity[group.group_id]["similarity"],
            }
            for _, group in known
        ),
    )
    files = [settings.out, settings.accuracy]
    if problems is None:
        return [], files
    selected = [groups[key].group_id for key in rank_order(scored.priorities)[: settings.select]]
    folder = settings.selected or settings.out.with_name("selected")
    write_selected(folder, problems, selected)
    return selected, [*files, folder / "train.jsonl", folder / "train.parquet"]


def _spearman(ledger: Ledger, train: ResponseFile) -> float:
    reference = ledger[f"validation/{POOLED}"][1].astype(np.float64)
    exact, sketched = [], []
    for group in train.groups:
        measurement, row = ledger[f"train/{group.group_id}"]
        if measurement.norm > 0:
            exact.append(measurement.dot / measurement.norm)
            sketched.append(float(row @ reference / np.linalg.norm(row)))
    return spearman(np.array(sketched), np.array(exact))
