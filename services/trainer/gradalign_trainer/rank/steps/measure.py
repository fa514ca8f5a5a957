"""The gradients of the groups of a ranking: one group's, and those of all, one after the other, into its ledger."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign.errors import GradAlignError, SketchError
from gradalign.sketch import Sketcher
from gradalign_trainer.datasets.sources.remote import Source
from gradalign_trainer.rank.steps.gradient import Piece, Row, add_gradient, encode
from gradalign_trainer.rank.steps.ledger import Ledger, Measurement
from gradalign_trainer.rank.steps.responses import ResponseFile, ResponseGroup
from gradalign_trainer.rank.steps.settings import RankSettings
from gradalign_trainer.reporting.progress import Advance, TellsProgress

__all__ = ["POOLED", "Encoded", "Measurer", "Meter", "Taken", "encode_file", "warn_of_cut"]

POOLED = "pooled"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The groups of a file as tokens; item i everywhere is group i.

    Attributes:
        groups: of the file.
        rows: of each group, in order of length.
        offsets: rows of the file before each group.
    """

    groups: Sequence[ResponseGroup]
    rows: Sequence[Sequence[Row]]
    offsets: Sequence[int]

    @property
    def tokens(self) -> list[int]:
        """Response tokens of each group."""
        return [sum(row.tokens for row in rows) for rows in self.rows]


def encode_file(
    file: ResponseFile, tokenizer: PreTrainedTokenizerBase, settings: RankSettings, *, progress: TellsProgress
) -> Encoded:
    """Tokenize the responses of a file; says how many were cut."""
    rows, offsets, cut, done = [], [], 0, 0
    with progress(f"tokenizing {file.path.name}", len(file.groups)) as advance:
        for group in file.groups:
            encoded, over = encode(
                group, tokenizer, settings.rule, max_length=settings.max_length, normalize=settings.normalize
            )
            rows.append(encoded)
            offsets.append(done)
            done += len(encoded)
            cut += over
            advance(1)
    warn_of_cut(file.path, cut, done, settings)
    return Encoded(file.groups, rows, offsets)


def warn_of_cut(file: Source, cut: int, responses: int, settings: RankSettings) -> None:
    """Say how many responses were cut, where any were."""
    if cut:
        logger.warning(
            "%s: %d of %d responses are longer than %d tokens with their prompts and were cut there; --max-length sets it.",
            file,
            cut,
            responses,
            settings.max_length,
        )


class Taken(NamedTuple):
    """What was taken of a group.

    Attributes:
        measurement: kept of it beside the sketch.
        sketch: float32 [dim]; zeros where it has no signal.
        fault: why its gradient could not be sketched, so that it counts as no signal; None where it could.
    """

    measurement: Measurement
    sketch: Tensor
    fault: str | None = None


class Meter:
    """Takes the gradient of one group, or of many together.

    Args:
        model: the policy.
        settings: of the ranking.
    """

    def __init__(self, model: PreTrainedModel, settings: RankSettings) -> None:
        self.model, self._settings = model, settings
        self.sketcher = Sketcher(model, dim=settings.dim, seed=settings.seed)

    def pooled(self, groups: Sequence[Sequence[Row]], progress: TellsProgress) -> tuple[dict[str, Tensor], Taken]:
        """The full gradient of all groups together, by canonical name, and what is kept of it.

        By the rule `group` it is the sum of all token terms over all tokens: the groups' gradients, each weighted by its
        tokens.

        Args:
            groups: the rows of each, in order of length.
            progress: told how far it is.

        Raises:
            GradAlignError: it is zero, or not finite.
        """
        rows = [row for group in groups for row in group]
        self.model.zero_grad(set_to_none=True)
        pieces = list(self._settings.rule.pieces(rows))
        with progress("full validation gradient", len(pieces)) as advance:
            self._add(pieces, advance)
        gradient = self.sketcher.gradients()
        if not any(bool(part.any()) for part in gradient.values()):
            raise GradAlignError(
                "the validation gradient is zero: in every group all responses got the same reward. Take more responses a "
                "problem, or problems that the model solves sometimes."
            )
        exact = self.sketcher.from_grads(against=gradient)
        kept = Measurement(f"validation/{POOLED}", self._settings.rule.loss(rows), float(exact.dot), float(exact.norm))
        return gradient, Taken(kept, exact.sketch)

    def _add(self, pieces: Sequence[Piece], advance: Advance) -> None:
        for piece in pieces:
            add_gradient(self.model, [piece])
            advance(1)

    def group(
        self, key: str, group: ResponseGroup, rows: Sequence[Row], offset: int, against: Mapping[str, Tensor] | None
    ) -> Taken:
        """The gradient of one group; zeros where it has no signal.

        Args:
            key: that it is kept under.
            group: to measure.
            rows: of it, in order of length.
            offset: rows of the file before it.
            against: full gradient to take the exact product with.
        """
        nothing = Taken(Measurement(key, 0.0), torch.zeros(self.sketcher.dim))
        if not group.signal:
            return nothing
        rule = self._settings.rule
        self.model.zero_grad(set_to_none=True)
        add_gradient(self.model, rule.pieces(rows, offset))
        loss = rule.loss(rows, offset)
        try:
            if against is None:
                return Taken(Measurement(key, loss), self.sketcher.from_grads())
            exact = self.sketcher.from_grads(against=against)
        except SketchError as error:
            return nothing._replace(fault=f"Group {group.group_id} counts as no signal: {error}")
        return Taken(Measurement(key, loss, float(exact.dot), float(exact.norm)), exact.sketch)


class Measurer:
    """Takes gradients of one policy into a ledger.

    Args:
        model: the policy.
        settings: of the ranking.
        ledger: where measurements go.
        progress: told how far it is.
    """

    def __init__(self, model: PreTrainedModel, settings: RankSettings, ledger: Ledger, progress: TellsProgress) -> None:
        self._ledger, self._progress = ledger, progress
        self._meter = Meter(model, settings)
        self.sketcher = self._meter.sketcher

    def pooled(self, encoded: Encoded) -> dict[str, Tensor]:
        """The full gradient of all groups together; its sketch goes to the ledger under `validation/pooled`.

        Raises:
            GradAlignError: it is zero, or not finite.
        """
        key = f"validation/{POOLED}"
        kept = self._ledger.gradient(self._meter.model.device) if key in self._ledger else None
        if kept is not None:
            return kept
        gradient, taken = self._meter.pooled(encoded.rows, self._progress)
        self._ledger.keep_gradient(gradient)
        self._ledger.add(taken.measurement, taken.sketch)
        return gradient

    def groups(self, part: str, encoded: Encoded, against: Mapping[str, Tensor] | None = None) -> None:
        """Measure every group that the ledger lacks, under the keys `part/ID`; zeros where it has no signal.

        Args:
            part: `train` or `validation`.
            encoded: of the file.
            against: full gradient to take exact products with.
        """
        with self._progress(f"{part} gradients", len(encoded.groups)) as advance:
            for group, rows, offset in zip(encoded.groups, encoded.rows, encoded.offsets, strict=True):
                key = f"{part}/{group.group_id}"
                if key not in self._ledger:
                    taken = self._meter.group(key, group, rows, offset, against)
                    if taken.fault:
                        logger.warning(taken.fault)
                    self._ledger.add(taken.measurement, taken.sketch)
                advance(1)
        self._meter.model.zero_grad(set_to_none=True)
