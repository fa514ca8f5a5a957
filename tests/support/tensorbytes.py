"""The most bytes of tensors made during a call that were alive at once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Alive(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs or {})):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in self._known:
                self._add(value.untyped_storage(), 0)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if (
                isinstance(value, Tensor)
                and value.device.type != "meta"
                and value.untyped_storage()._cdata not in self._known
            ):
                self._add(value.untyped_storage(), value.untyped_storage().nbytes())
        return result

    def _add(self, storage: Any, size: int) -> None:
        # What was there before counts for nothing, until it is freed: another storage may come to lie at its address.
        key = storage._cdata
        self._known[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


def peak_bytes(act: Callable[[], object]) -> int:
    """Bytes beyond what was alive before; one thread, no autograd graphs of before."""
    gc.collect()
    with torch.no_grad(), _Alive() as alive:
        act()
    return alive.peak
