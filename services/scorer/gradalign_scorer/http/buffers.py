"""Large buffers for request bodies, used again: a fresh one costs four times as much, in page faults."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

__all__ = ["BufferPool", "PooledBuffer"]

_SMALLEST = 1 << 20
_STEP = 1 << 20


class PooledBuffer:
    """A buffer of at least the length asked for.

    Attributes:
        view: writable, exactly as long as asked for.
    """

    def __init__(self, block: Tensor, length: int) -> None:
        self.block = block
        self.view = memoryview(block.numpy().data)[:length]


class BufferPool:
    """Keeps buffers that are free, the last ones given back first in hand.

    Args:
        max_bytes: of free buffers kept; 0 keeps none.
        pinned: in memory that a CUDA device copies from without a detour.
    """

    def __init__(self, max_bytes: int, *, pinned: bool = False) -> None:
        self._max_bytes = max_bytes
        self._pinned = pinned
        self._free: deque[Tensor] = deque()
        self.free_bytes = 0

    def take(self, length: int) -> PooledBuffer:
        """A buffer of some length; its content is whatever was there before."""
        return PooledBuffer(self._block(length), length)

    def _block(self, length: int) -> Tensor:
        # One much too large is left for a request that needs it.
        fitting = [at for at, block in enumerate(self._free) if length <= block.numel() <= 2 * max(length, _SMALLEST)]
        if not fitting:
            size = -(-max(length, 1) // _STEP) * _STEP if length >= _SMALLEST else max(length, 1)
            return torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        at = min(fitting, key=lambda at: self._free[at].numel())
        block = self._free[at]
        del self._free[at]
        self.free_bytes -= block.numel()
        return block

    def give(self, buffer: PooledBuffer) -> None:
        """Take a buffer back that nobody reads or writes any more."""
        size = buffer.block.numel()
        if size < _SMALLEST or size > self._max_bytes:
            return
        while self._free and self.free_bytes + size > self._max_bytes:
            self.free_bytes -= self._free.popleft().numel()
        self._free.append(buffer.block)
        self.free_bytes += size
