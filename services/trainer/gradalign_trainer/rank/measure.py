"""The gradients of all groups of a ranking, one after the other, into its ledger."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign.errors import GradAlignError, SketchError
from gradalign.sketch import Sketcher
from gradalign_trainer.rank.gradient import Row, add_gradient, encode
from gradalign_trainer.rank.ledger import Ledger, Measurement
from gradalign_trainer.rank.responses import ResponseFile, ResponseGroup
from gradalign_trainer.rank.settings import RankSettings
from gradalign_trainer.reporting.progress import TellsProgress

__all__ = ["POOLED", "Encoded", "Measurer", "encode_file"]

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
    if cut:
        logger.warning(
            "%s: %d of %d responses are longer than %d tokens with their prompts and were cut there; --max-length sets it.",
            file.path,
            cut,
            done,
            settings.max_length,
        )
    return Encoded(file.groups, rows, offsets)


class Measurer:
    """Takes gradients of one policy.

    Args:
        model: the policy.
        settings: of the ranking.
        ledger: where measurements go.
        progress: told how far it is.
    """

    def __init__(self, model: PreTrainedModel, settings: RankSettings, ledger: Ledger, progress: TellsProgress) -> None:
        self._model, self._settings, self._ledger, self._progress = model, settings, ledger, progress
        self.sketcher = Sketcher(model, dim=settings.dim, seed=settings.seed)

    def pooled(self, encoded: Encoded) -> dict[str, Tensor]:
        """The full gradient of all groups together; its sketch goes to the ledger under `validation/pooled`.

        By the rule `group` it is the sum of all token terms over all tokens: the groups' gradients, each weighted by its
        tokens.

        Raises:
            GradAlignError: it is zero, or not finite.
        """
        key = f"validation/{POOLED}"
        kept = self._ledger.gradient(self._model.device) if key in self._ledger else None
        if kept is not None:
            return kept
        rows = [row for group in encoded.rows for row in group]
        self._model.zero_grad(set_to_none=True)
        pieces = list(self._settings.rule.pieces(rows))
        with self._progress("full validation gradient", len(pieces)) as advance:
            for piece in pieces:
                add_gradient(self._model, [piece])
                advance(1)
        gradient = self.sketcher.gradients()
        if not any(bool(part.any()) for part in gradient.values()):
            raise GradAlignError(
                "the validation gradient is zero: in every group all responses got the same reward. Take more responses a "
                "problem, or problems that the model solves sometimes."
            )
        self._ledger.keep_gradient(gradient)
        exact = self.sketcher.from_grads(against=gradient)
        self._ledger.add(Measurement(key, self._settings.rule.loss(rows), exact.dot, exact.norm), exact.sketch)
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
                    self._ledger.add(*self._measured(key, group, rows, offset, against))
                advance(1)
        self._model.zero_grad(set_to_none=True)

    def _measured(
        self, key: str, group: ResponseGroup, rows: Sequence[Row], offset: int, against: Mapping[str, Tensor] | None
    ) -> tuple[Measurement, Tensor]:
        nothing = Measurement(key, 0.0), torch.zeros(self.sketcher.dim)
        if not group.signal:
            return nothing
        rule = self._settings.rule
        self._model.zero_grad(set_to_none=True)
        add_gradient(self._model, rule.pieces(rows, offset))
        try:
            if against is None:
                return Measurement(key, rule.loss(rows, offset)), self.sketcher.from_grads()
            exact = self.sketcher.from_grads(against=against)
        except SketchError as error:
            logger.warning("Group %s counts as no signal: %s", group.group_id, error)
            return nothing
        return Measurement(key, rule.loss(rows, offset), float(exact.dot), float(exact.norm)), exact.sketch
