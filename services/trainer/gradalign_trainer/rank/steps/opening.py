"""What a ranking opens before it measures: files, the policy, a scorer."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign import Client
from gradalign.errors import GradAlignError
from gradalign_trainer.curriculum.localscorer import local_scorer
from gradalign_trainer.datasets.records.schema import BadRecord
from gradalign_trainer.datasets.sources.remote import Source
from gradalign_trainer.grpo.models import load_policy, pick_device
from gradalign_trainer.rank.steps.outputs import ProblemFile, read_problem_file
from gradalign_trainer.rank.steps.responses import GroupId, ResponseFile, read_responses
from gradalign_trainer.rank.steps.settings import RankSettings
from gradalign_trainer.reporting.progress import TellsProgress

__all__ = ["check_known", "open_policy", "open_problems", "open_responses", "open_scorer", "warn_of_bad"]

SHOWN = 10
logger = logging.getLogger(__name__)


def open_policy(settings: RankSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy and its tokenizer.

    Raises:
        GradAlignError: it cannot be loaded.
    """
    try:
        return load_policy(settings.model, device=pick_device(settings.device), dtype=settings.dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise GradAlignError(
            f"--model {settings.model} cannot be loaded on --device {settings.device}: {error}\nExpected the folder or hub "
            "id of a causal LM in Hugging Face form with its tokenizer, and auto, cpu, cuda or cuda:N."
        ) from error


def open_responses(path: Source, progress: TellsProgress) -> ResponseFile:
    """Scored responses, all at once; says which records it left out.

    Raises:
        DataError: the file is not there, or none of its records fits.
    """
    file = read_responses(path, progress=progress)
    warn_of_bad(path, file.bad, len(file.bad), file.records)
    return file


def warn_of_bad(path: Source, bad: Iterable[BadRecord], count: int, records: int) -> None:
    """Name the first bad records of a file, where there are any.

    Args:
        path: of the file.
        bad: the bad ones, of which the first are read.
        count: of the bad ones.
        records: of all.
    """
    if count:
        listing = "".join(f"\n  {each}" for each in islice(bad, SHOWN))
        more = f"\n  and {count - SHOWN} more" if count > SHOWN else ""
        logger.warning("%s: left out %d of %d records:%s%s", path, count, records, listing, more)


def open_problems(path: Source, duplicates: str, *, keep: Container[GroupId] | None = None) -> ProblemFile:
    """The problems; says what it left out.

    Args:
        path: of the file.
        duplicates: `refuse` or `drop`.
        keep: of which the records are kept; None for all.

    Raises:
        DataError: they cannot be read.
    """
    file = read_problem_file(path, drop_duplicates=duplicates == "drop", keep=keep)
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


def check_known(path: Source, problems: ProblemFile, known: int, left_out: int, ids: Iterable[GroupId]) -> None:
    """Say how many groups of a file are left out because the problems lack them.

    Args:
        path: of the responses.
        problems: the candidates.
        known: groups that are kept.
        left_out: groups that are not.
        ids: of all groups; read where none is kept.

    Raises:
        DataError: the problems have none of them.
    """
    if not known:
        problems.check(ids)
    if left_out:
        logger.warning("%s: left out %d groups that %s does not have.", path, left_out, problems.path)


@contextmanager
def open_scorer(settings: RankSettings, state: Mapping[str, Any]) -> Iterator[Client]:
    """A client of the scorer for the run of this ranking; one is started where the settings name none.

    Args:
        settings: of the ranking.
        state: what its measurements depend on, which the run is called by.
    """
    digest = hashlib.sha256(json.dumps([state, settings.strategy], sort_keys=True).encode()).hexdigest()
    with (
        nullcontext(settings.url) if settings.url else local_scorer() as url,
        Client(url, run_id=f"rank-{digest[:16]}", sketch_dtype=settings.sketch_dtype) as client,
    ):
        yield client
