"""Norms of the gradient of a model's head, out of the forward that the products take anyway.

The head's gradient of a problem is `sum_t w_t (onehot(y_t) - softmax(z_t)) h_t^T`, with h the head's input: it needs no
backward. The vocabulary is gone through in chunks, so that no [B, T, V] in float32 is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from gradalign.errors import DirectionError
from gradalign.forward.passes.batches import LogProbs, MicroBatch, checked, checked_logprobs

__all__ = ["HeadTap", "head_norms"]

_CHUNK: Final = 1 << 22
"""Elements of [tokens, part of the vocabulary] that are held at once."""

_MAY_DIFFER: Final = 0.1


class HeadTap:
    """Listens to the input of a model's head while a log-prob function runs, and takes norms from the first pass.

    Args:
        model: a transformers model, or one that has `get_output_embeddings()`.
        given: rollouts, one micro-batch.
        labels: LongTensor [B, T], the tokens whose log-probs the function gives.
        temperature: that it divides logits by.

    Raises:
        DirectionError: the model shows no head, or a shape is wrong.
    """

    def __init__(self, model: nn.Module | None, given: MicroBatch, labels: Tensor, temperature: float) -> None:
        self.given = checked(given)
        if labels.shape != given.mask.shape or labels.is_floating_point():
            raise DirectionError(
                f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}; expected tokens, "
                f"integers {list(given.mask.shape)} as the mask has it."
            )
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if head is None or getattr(head, "weight", None) is None or hasattr(head.weight, "placements"):
            raise DirectionError(
                "the model shows no whole head by get_output_embeddings(); call gradalign.forward.head_norms() with the "
                "hidden states and the head's weight."
            )
        self._head, self._labels, self._temperature = head, labels, temperature
        self._norms: Tensor | None = None

    def tapping(self, logprobs: LogProbs) -> LogProbs:
        """The log-prob function, listened to."""

        def tapped(batch: Any) -> Tensor:
            if self._norms is not None:
                return logprobs(batch)
            heard: list[Tensor] = []
            handle = self._head.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
            try:
                found = logprobs(batch)
            finally:
                handle.remove()
            with torch.no_grad():
                self._take(heard, found)
            return found

        return tapped

    def norms(self) -> Tensor:
        """Float64 [B], or [largest index + 1]."""
        assert self._norms is not None
        return self._norms

    def _take(self, heard: list[Tensor], found: Tensor) -> None:
        if not heard:
            raise DirectionError(
                "the log-prob function did not call the model's head (a fused loss reads its weight instead); call "
                "gradalign.forward.head_norms() with the hidden states."
            )
        width = self.given.mask.shape[1]
        found = _primal(found)
        hidden = torch.cat([_primal(h).reshape(-1, *h.shape[-2:]) for h in heard])
        if hidden.shape[1] > width:
            # Position t predicts token t + 1: the last has nothing to predict.
            hidden = hidden[:, -width - 1 : -1]
        if hidden.shape[:2] != self.given.mask.shape:
            raise DirectionError(
                f"the head's input is {tuple(hidden.shape)}, of which no part fits the mask {tuple(self.given.mask.shape)}; "
                "call gradalign.forward.head_norms() with the hidden states of the counted tokens."
            )
        norms, own = _norms(hidden, self._head, self.given, self._labels, self._temperature)
        theirs = checked_logprobs(found, self.given)[self.given.shares != 0].double().to(own.device)
        apart = float((theirs - own).square().mean().sqrt()) if len(own) else 0.0
        if apart > _MAY_DIFFER:
            raise DirectionError(
                f"the head's log-probs of these labels differ by {apart:.3g} nats a token from what logprobs(batch) gave: "
                "the labels are other tokens, the temperature is another, or the logits are capped or scaled. Give "
                "temperature=, or call gradalign.forward.head_norms() with the hidden states."
            )
        self._norms = norms


@torch.no_grad()
def head_norms(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    weights: Tensor,
    mask: Tensor,
    *,
    index: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Norms of the head's gradient, of rows or problems.

    Args:
        hidden: [B, T, D], the head's input at the positions that predict `labels`.
        head: a linear layer, whose `weight` is [V, D].
        labels: LongTensor [B, T].
        weights: [B], as in `Direction.products`; so are the next two.
        mask: [B, T].
        index: LongTensor [B], or None for norms of rows.
        temperature: that logits are divided by.

    Returns:
        Float64 [B], or [largest index + 1].
    """
    return _norms(hidden, head, checked(MicroBatch(None, weights, mask, None, index)), labels, temperature)[0]


def _norms(hidden: Tensor, head: Any, given: MicroBatch, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Norms, and the log-probs of the counted tokens, float64 [n], that the head gives."""
    shares = given.shares.to(hidden.device)
    kept = shares != 0
    owners, count = given.owners()
    owners = owners.to(hidden.device)[kept]
    order = owners.argsort(stable=True)
    rows = hidden[kept].float()[order]
    targets = labels.to(hidden.device)[kept][order]
    share = (shares[kept][order] / temperature).float()
    chunks = list(_chunks(rows, head))
    normalizer = torch.full((len(rows),), -torch.inf, device=rows.device)
    own = torch.zeros(len(rows), device=rows.device)
    for start, logits in _logits(rows, head, chunks, temperature):
        normalizer = torch.logaddexp(normalizer, logits.logsumexp(1))
        inside = (targets >= start) & (targets < start + logits.shape[1])
        own[inside] = logits[inside].gather(1, targets[inside, None] - start)[:, 0]
    squares = torch.zeros(count, dtype=torch.float64, device=rows.device)
    bounds = [0, *torch.bincount(owners, minlength=count).cumsum(0).tolist()]
    grams = [rows[a:b] @ rows[a:b].t() if b - a <= rows.shape[1] else None for a, b in pairwise(bounds)]
    for start, logits in _logits(rows, head, chunks, temperature):
        errors = (logits - normalizer[:, None]).exp_()
        inside = ((targets >= start) & (targets < start + logits.shape[1])).nonzero()[:, 0]
        errors[inside, targets[inside] - start] -= 1
        errors *= share[:, None]
        for problem, gram in enumerate(grams):
            part = slice(bounds[problem], bounds[problem + 1])
            if gram is None:
                squares[problem] += (errors[part].t() @ rows[part]).square().sum(dtype=torch.float64)
            elif gram.numel():
                squares[problem] += ((errors[part] @ errors[part].t()) * gram).sum(dtype=torch.float64)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return squares.clamp(min=0).sqrt(), (own - normalizer)[back].double()


def _primal(value: Any) -> Any:
    """A tensor without the derivative that it carries in forward mode."""
    return forward_ad.unpack_dual(value).primal if isinstance(value, Tensor) else value


def _chunks(rows: Tensor, head: Any) -> Iterator[tuple[int, int]]:
    vocabulary = head.weight.shape[0]
    size = max(1, min(vocabulary, _CHUNK // max(1, len(rows))))
    for start in range(0, vocabulary, size):
        yield start, min(vocabulary, start + size)


def _logits(rows: Tensor, head: Any, chunks: list[tuple[int, int]], temperature: float) -> Iterator[tuple[int, Tensor]]:
    bias = getattr(head, "bias", None)
    for start, stop in chunks:
        logits = rows @ _primal(head.weight[start:stop]).detach().float().t()
        if bias is not None:
            logits += _primal(bias[start:stop]).detach().float()
        yield start, logits / temperature
