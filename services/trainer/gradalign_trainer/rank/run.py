"""`run_ranking`: from files to files."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from gradalign import Client
from gradalign_trainer.rank.steps.ledger import Ledger
from gradalign_trainer.rank.steps.measure import POOLED, Encoded, Measurer, encode_file
from gradalign_trainer.rank.steps.opening import check_known, open_policy, open_problems, open_responses, open_scorer
from gradalign_trainer.rank.steps.outputs import ProblemFile, write_lines, write_selected
from gradalign_trainer.rank.steps.report import BY_PRIORITY, RankReport, accuracy_line, pass_rate, similarity_line
from gradalign_trainer.rank.steps.responses import GroupId, ResponseFile, wire_id
from gradalign_trainer.rank.steps.scoring import (
    Columns,
    Scored,
    Scoring,
    check_sizes,
    rank_order,
    sketch_spearman,
    with_epsilon,
)
from gradalign_trainer.rank.steps.settings import RankSettings
from gradalign_trainer.reporting.progress import TellsProgress, no_progress

__all__ = ["RankReport", "run_ranking"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Parts:
    train: Encoded
    validation: Encoded | None


class _Ranked(NamedTuple):
    scored: Scored
    priorities: dict[str, float]
    alignments: dict[str, float | None]


def run_ranking(settings: RankSettings, *, progress: TellsProgress = no_progress) -> RankReport:
    """Read the files, take the gradients, ask the scorer, write the files.

    Raises:
        GradAlignError: files, settings or scorer do not fit.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    train = open_responses(settings.train, progress)
    validation = None if settings.validation is None else open_responses(settings.validation, progress)
    problems = None if settings.problems is None else open_problems(settings.problems, settings.duplicates)
    bad = sum(len(file.bad) for file in (train, validation, problems) if file is not None)
    train, left_out = _only_known(train, problems)
    check_sizes(settings, len(train.groups), len(validation.groups) if validation else 0)
    model, tokenizer = open_policy(settings)
    state = settings.measured()
    ledger = Ledger(settings.progress, state, settings.dim, resume=settings.resume)
    before = len(ledger)
    measurer = Measurer(model, settings, ledger, progress)
    try:
        parts = _measure(settings, measurer, (train, validation), tokenizer, progress)
        with open_scorer(settings, state) as client:
            ranked = _score(settings, measurer, client, ledger, parts)
    finally:
        ledger.close()
    selected, files = _write(settings, train, ranked, problems, ledger)
    scored = ranked.scored
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


def _only_known(train: ResponseFile, problems: ProblemFile | None) -> tuple[ResponseFile, int]:
    """Without the groups that the problems file lacks, as the reference does; how many those are."""
    if problems is None:
        return train, 0
    known = tuple(group for group in train.groups if group.group_id in problems.records)
    left_out = len(train.groups) - len(known)
    check_known(train.path, problems, len(known), left_out, (group.group_id for group in train.groups))
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


def _score(settings: RankSettings, measurer: Measurer, client: Client, ledger: Ledger, parts: _Parts) -> _Ranked:
    exact = settings.against is not None
    candidates = _columns(ledger, "train", parts.train, exact=exact)
    validation = None
    if exact:
        sketch = ledger[f"validation/{POOLED}"][1][None]
        validation = Columns([POOLED], sketch, tokens=[1], rollouts=[1])
    elif parts.validation is not None:
        validation = _columns(ledger, "validation", parts.validation, exact=False)
    if exact and settings.rule.name == "reference":
        candidates = with_epsilon(candidates, ledger[f"validation/{POOLED}"][0].norm)
    scoring = Scoring(client, measurer.sketcher.projection, settings.asked_strategy)
    if validation is not None:
        scoring.refresh(validation)
    priorities: dict[str, float] = {}
    alignments: dict[str, float | None] = {}
    for reply, aligned in scoring.replies(candidates.chunks()):
        priorities.update(zip(reply.problem_ids, reply.priorities, strict=True))
        alignments.update(zip(reply.problem_ids, aligned, strict=True))
    return _Ranked(scoring.scored, priorities, alignments)


def _columns(ledger: Ledger, part: str, encoded: Encoded, *, exact: bool) -> Columns:
    kept = [ledger[f"{part}/{group.group_id}"] for group in encoded.groups]
    return Columns(
        ids=[wire_id(group.group_id) for group in encoded.groups],
        sketches=np.stack([row for _, row in kept]),
        tokens=encoded.tokens,
        rollouts=[len(group.rewards) for group in encoded.groups],
        pass_rates=[pass_rate(group.rewards) for group in encoded.groups] if part == "train" else None,
        dots=[measurement.dot for measurement, _ in kept] if exact else None,
        norms=[measurement.norm for measurement, _ in kept] if exact else None,
    )


def _write(
    settings: RankSettings, train: ResponseFile, ranked: _Ranked, problems: ProblemFile | None, ledger: Ledger
) -> tuple[list[GroupId], list[Path]]:
    groups = {wire_id(group.group_id): group for group in train.groups}
    for problem_id, reason in ranked.scored.rejected.items():
        logger.warning("group %s was left out by the scorer: %s", groups[problem_id].group_id, reason)
    known = [(key, group) for key, group in groups.items() if key in ranked.priorities]
    values = ranked.priorities if settings.strategy in BY_PRIORITY else ranked.alignments
    losses = {key: ledger[f"train/{group.group_id}"][0].loss for key, group in known}
    write_lines(settings.out, (similarity_line(group.group_id, values[key], losses[key]) for key, group in known))
    write_lines(settings.accuracy, (accuracy_line(group.group_id, group.rewards, values[key]) for key, group in known))
    files = [settings.out, settings.accuracy]
    if problems is None:
        return [], files
    selected = [groups[key].group_id for key in rank_order(ranked.priorities)[: settings.select]]
    folder = settings.selected_folder
    write_selected(folder, problems, selected)
    return selected, [*files, folder / "train.jsonl", folder / "train.parquet"]


def _spearman(ledger: Ledger, train: ResponseFile) -> float:
    kept = (ledger[f"train/{group.group_id}"] for group in train.groups)
    groups = ((measurement.dot, measurement.norm, row) for measurement, row in kept)
    return sketch_spearman(groups, ledger[f"validation/{POOLED}"][1])
