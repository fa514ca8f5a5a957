"""Moves weights along a direction in place, and puts back every bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from gradalign.errors import DirectionError
from gradalign.forward.parameters.shards import Shard

__all__ = ["NARROW", "Weights", "check_masters", "narrow_gathers", "resharder"]

NARROW: Final = (torch.bfloat16, torch.float16)


class Weights:
    """Parameters that can be moved for a while.

    Args:
        shards: this rank's parts of them.
        parts: of the direction, in the shards' order; None where a shard stays.
        masters: float32 (or wider) values by parameter name, which the weights are roundings of.
        synchronize: called when the shards have moved, and when they are back.
        offload: keep the copy of the weights on the CPU.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        parts: Sequence[Tensor | None],
        masters: Mapping[str, Tensor],
        synchronize: Callable[[], None],
        *,
        offload: bool,
    ) -> None:
        self._moving = [(s, p) for s, p in zip(shards, parts, strict=True) if p is not None and p.numel()]
        self._masters, self._synchronize, self._offload = masters, synchronize, offload
        self._saved: list[tuple[Shard, Tensor, int]] = []

    @contextmanager
    def moved(self) -> Iterator[Callable[[float], None]]:
        """Gives `move(distance)`, which puts the weights at theta + distance times the direction; puts them back at the end.

        Also where the block raises, and where Ctrl-C comes in the middle of a move. A second Ctrl-C waits for the rest.

        Raises:
            DirectionError: a weight could not be put back.
        """
        try:
            yield self._move
        finally:
            self._restore()

    @torch.no_grad()
    def _move(self, distance: float) -> None:
        for at, (shard, part) in enumerate(self._moving):
            weight = shard.weight
            if at == len(self._saved):
                copy = weight.to("cpu", copy=True) if self._offload else weight.clone()
                self._saved.append((shard, copy, weight.data_ptr()))
            if weight.data_ptr() != self._saved[at][2]:
                raise _gone(shard.part.name)
            origin = self._masters.get(shard.part.name, self._saved[at][1])
            torch.add(origin.to(weight.device), part.to(weight.device), alpha=distance, out=weight)
        self._moved()

    def _moved(self) -> None:
        # Autocast keeps its casts of weights while a region is open: they would hide the move.
        torch.clear_autocast_cache()
        self._synchronize()

    @torch.no_grad()
    def _restore(self) -> None:
        interrupt: KeyboardInterrupt | None = None
        lost: list[str] = []
        any_moved = bool(self._saved)
        while self._saved:
            try:
                # The last first: where two shards share memory, the copy that was made first is the true one.
                shard, copy, address = self._saved[-1]
                if not _put_back(shard, copy, address):
                    lost.append(shard.part.name)
                self._saved.pop()
            except KeyboardInterrupt as error:
                interrupt = error
        if any_moved:
            self._moved()
        if lost:
            raise _gone(lost[-1], len(lost))
        if interrupt is not None:
            raise interrupt


def _put_back(shard: Shard, copy: Tensor, address: int) -> bool:
    weight = shard.weight
    if weight.data_ptr() != address:
        return False
    weight.copy_(copy)
    return _current(shard).data_ptr() == address


def _gone(name: str, count: int = 1) -> DirectionError:
    return DirectionError(
        f"{count} weights did not come back, the first is {name}: their memory was freed or replaced while the log-prob "
        "function ran. Load them from a checkpoint, and give shards that stay where they are."
    )


def _current(shard: Shard) -> Tensor:
    owner: Any = shard.owner.data
    local: Tensor = owner.to_local() if hasattr(owner, "to_local") else owner
    return local


def resharder(model: nn.Module | None) -> Callable[[], None]:
    """What makes FSDP2 gather its shards anew: parts of a model that it leaves whole after a forward hide a move."""
    modules = _fsdp2_modules(model)

    def reshard() -> None:
        for module in modules:
            module.reshard()

    return reshard


def narrow_gathers(model: nn.Module | None, shards: Sequence[Shard]) -> torch.dtype | None:
    """The 16-bit dtype in which FSDP2 gathers weights; None if it gathers none, or wider."""
    modules = _fsdp2_modules(model)
    dtypes = [module._get_fsdp_state()._mp_policy.param_dtype for module in modules]
    dtypes += [shard.weight.dtype for shard in shards if modules and shard.spread is not None]
    return next((dtype for dtype in dtypes if dtype in NARROW), None)


def _fsdp2_modules(model: nn.Module | None) -> list[Any]:
    modules = [] if model is None else model.modules()
    return [m for m in modules if any(kind.__name__ == "FSDPModule" for kind in type(m).__mro__)]


def check_masters(masters: Mapping[str, Tensor], shards: Sequence[Shard]) -> None:
    """Raise DirectionError unless every master has the shape of this rank's part of a weight."""
    shapes = {s.part.name: tuple(s.weight.shape) for s in shards}
    for name, master in masters.items():
        if shapes.get(name) != tuple(master.shape):
            raise DirectionError(
                f"masters[{name!r}] has shape {tuple(master.shape)}; this rank's trainable weight of that name has "
                f"{shapes.get(name, 'no such name')}."
            )
