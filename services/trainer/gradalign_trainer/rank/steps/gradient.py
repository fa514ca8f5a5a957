"""The policy gradient of scored responses, and how its token terms are added up: this project's rule, or the reference's.

`group` divides by the response tokens of the whole group: one number per problem, whatever the batch, see
`gradalign_trainer.grpo.loss`. `reference` does what the analysis of GradAlign's authors does: rows in order of (group,
length) are dealt to `ranks` processes, each cuts its own into mini-batches, each mini-batch's loss is its own token mean
times 8, and the processes' sums are averaged; response tokens equal to the padding token do not count; and 1e-5 is added to
every norm. Its rule of a prompt that is a single token, whose first response token it drops, is not followed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gradalign_trainer.grpo.generation import RolloutBatch
from gradalign_trainer.grpo.loss import advantages, completion_logprobs
from gradalign_trainer.rank.steps.responses import ResponseGroup

__all__ = ["REFERENCE_EPSILON", "RULES", "Piece", "Row", "Rule", "add_gradient", "encode"]

RULES = ("group", "reference")
REFERENCE_SCALE = 8.0
REFERENCE_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Row:
    """One response, as tokens.

    Attributes:
        ids: of prompt and response.
        start: tokens of the prompt.
        counted: for each response token, whether it is a term of the loss.
        advantage: of the response in its group.
    """

    ids: tuple[int, ...]
    start: int
    counted: tuple[bool, ...]
    advantage: float

    @property
    def tokens(self) -> int:
        """Terms of the loss."""
        return sum(self.counted)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one forward and backward; their loss is `-scale * sum_i A_i sum_t log pi(y_it)`."""

    rows: tuple[Row, ...]
    scale: float


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to add up.

    Attributes:
        name: one of `RULES`.
        rows_per_backward: of `group`; bounds memory, and changes nothing else.
        mini_batch: of `reference`: rows of a mini-batch; the gradient depends on it.
        ranks: of `reference`: processes that the rows are dealt to; the gradient depends on it.
    """

    name: str
    rows_per_backward: int = 32
    mini_batch: int = 8
    ranks: int = 1

    def pieces(self, rows: Sequence[Row], offset: int = 0) -> Iterator[Piece]:
        """What to run for rows that are in order of (group, length).

        Args:
            rows: of one group, or of all validation groups.
            offset: rows of the file that come before these; the dealing to ranks goes by the place in the file.
        """
        if self.name == "group":
            total = sum(row.tokens for row in rows)
            for part in _parts(rows, self.rows_per_backward) if total else ():
                yield Piece(part, 1 / total)
            return
        for rank in range(self.ranks):
            for part in _parts(rows[(rank - offset) % self.ranks :: self.ranks], self.mini_batch):
                tokens = sum(row.tokens for row in part)
                if tokens:
                    yield Piece(part, REFERENCE_SCALE / (tokens * self.ranks))

    def loss(self, rows: Sequence[Row], offset: int = 0) -> float:
        """The value of the loss at ratio 1: of `reference`, the mean over mini-batches of 8 times the token mean."""
        pieces = list(self.pieces(rows, offset))
        total = -sum(piece.scale * row.advantage * row.tokens for piece in pieces for row in piece.rows)
        return (total if self.name == "group" else total * self.ranks / max(len(pieces), 1)) + 0.0  # never -0.0


def _parts(rows: Sequence[Row], size: int) -> Iterator[tuple[Row, ...]]:
    for start in range(0, len(rows), size):
        yield tuple(rows[start : start + size])


def encode(
    group: ResponseGroup,
    tokenizer: PreTrainedTokenizerBase,
    rule: Rule,
    *,
    max_length: int,
    normalize: bool,
) -> tuple[list[Row], int]:
    """The rows of a group in order of length, and how many were cut at `max_length`.

    A response is what the tokens of prompt and response together have beyond the number of tokens of the prompt alone.

    Args:
        group: to encode.
        tokenizer: of the model.
        rule: whose tokens count.
        max_length: tokens of prompt and response.
        normalize: divide advantages by the standard deviation of the group.
    """
    starts = [len(ids) for ids in tokenizer(list(group.prompts))["input_ids"]]
    whole = tokenizer([a + b for a, b in zip(group.prompts, group.responses, strict=True)])["input_ids"]
    credit = advantages(torch.tensor([group.rewards], dtype=torch.float64), normalize=normalize)[0].tolist()
    padding = _padding(tokenizer) if rule.name == "reference" else None
    rows = []
    for ids, start, advantage in zip(whole, starts, credit, strict=True):
        kept = tuple(ids[:max_length])
        rows.append(Row(kept, start, tuple(token != padding for token in kept[start:]), advantage))
    return sorted(rows, key=lambda row: len(row.ids)), sum(len(ids) > max_length for ids in whole)


def _padding(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The padding token, which may be 0; the end token where there is none."""
    padding: int | None = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return padding


def add_gradient(model: PreTrainedModel, pieces: Iterable[Piece]) -> None:
    """Add the gradient of the sum of the pieces' losses to `.grad`, one forward and backward a piece."""
    for piece in pieces:
        rows = [row for row in piece.rows if row.advantage != 0 and row.tokens]
        if rows:
            _loss(model, rows, piece.scale).backward()


def _loss(model: PreTrainedModel, rows: Sequence[Row], scale: float) -> Tensor:
    device = model.device
    counted = _right([row.counted for row in rows], device).float()
    batch = RolloutBatch(
        prompt_ids=_left([row.ids[: row.start] for row in rows], device),
        prompt_mask=_left([(1,) * row.start for row in rows], device),
        completion_ids=_right([row.ids[row.start :] for row in rows], device),
        completion_mask=_right([(1,) * len(row.counted) for row in rows], device),
        texts=[],
        group_size=1,
        temperature=1.0,
    )
    advantage = torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=device)
    return -scale * ((completion_logprobs(model, batch) * counted).sum(1) * advantage).sum()


def _left(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)


def _right(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[int(value) for value in row] + [0] * (longest - len(row)) for row in rows], device=device)
