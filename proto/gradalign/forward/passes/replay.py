"""Runs the trainer's log-prob function again and again with nothing changed but the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.errors import DirectionError
from gradalign.forward.passes.batches import LogProbs, MicroBatch, checked_logprobs

__all__ = ["Passes", "random_base"]


class Passes:
    """Every pass sees the same random numbers and the same buffers; the trainer's own are left as they were.

    Args:
        logprobs: from a batch to log-probs, [B, T].
        given: the micro-batches of one pass.
        model: whose buffers (batch-norm's statistics, say) are put back; None where an engine hides it.
        devices: that random numbers are drawn on.
        watch: whether to look for autocast.

    Attributes:
        drew: whether a pass has drawn random numbers: dropout is on.
        autocast: whether a pass that was watched ran modules under autocast to a dtype of 16 bits.
    """

    def __init__(
        self,
        logprobs: LogProbs,
        given: Sequence[MicroBatch],
        model: nn.Module | None,
        devices: Iterable[torch.device],
        *,
        watch: bool = False,
    ) -> None:
        self._logprobs, self.given = logprobs, given
        self._buffers = list(_buffers(model)) if model is not None else []
        self._cuda = sorted({d.index or 0 for d in devices if d.type == "cuda"})
        self._generators = self._states()
        self._watch = watch
        self.drew = False
        self.autocast = False

    def __call__(self) -> list[Tensor]:
        """The log-probs of every micro-batch, [B, T], without a graph."""
        found = []
        for given, value in zip(self.given, self.raw(), strict=True):
            found.append(checked_logprobs(value, given))
        return found

    def raw(self) -> list[Any]:
        """What the function gives for every micro-batch, as it is."""
        lengths = [_cache_lengths(given.batch) for given in self.given]
        try:
            with torch.no_grad(), self._watched():
                found = [self._logprobs(given.batch) for given in self.given]
        finally:
            self._put_back()
        if lengths != [_cache_lengths(given.batch) for given in self.given]:
            raise DirectionError(
                "the batch carries a key-value cache that a forward makes longer, so no two passes see the same; give whole "
                "sequences without past_key_values."
            )
        return found

    def _states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in self._cuda)]

    def _put_back(self) -> None:
        self.drew |= any(not torch.equal(a, b) for a, b in zip(self._generators, self._states(), strict=True))
        torch.set_rng_state(self._generators[0])
        for index, state in zip(self._cuda, self._generators[1:], strict=True):
            torch.cuda.set_rng_state(state, index)
        for module, name, buffer, copy in self._buffers:
            # Always: batch-norm writes to its statistics without counting a version.
            buffer.data.copy_(copy)
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Notes whether modules run under autocast, which a trainer opens out of our sight."""

        def look(*_: Any) -> None:
            for kind in ("cuda", "cpu"):
                if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind).itemsize == 2:
                    self.autocast = True

        if not self._watch:
            yield
            return
        # Not always there: a compiled model is compiled anew for a global hook.
        handle = nn.modules.module.register_module_forward_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor, Tensor]]:
    """The module, name, tensor and copy of each buffer."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield module, name, buffer, buffer.detach().clone()


def random_base() -> DirectionError:
    """The error for given log-probs that are of other random numbers."""
    return DirectionError(
        "the log-prob function draws random numbers (dropout is on, say), so logprobs_at is of other draws than the pass at "
        "the moved weights. Call model.eval() around both, or leave logprobs_at out: both passes of the central difference "
        "then see the same draws."
    )


def _cache_lengths(batch: Any) -> list[int]:
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else [batch]
    return [int(v.get_seq_length()) for v in values if hasattr(v, "get_seq_length")]
