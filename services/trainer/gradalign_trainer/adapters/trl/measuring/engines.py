"""How a run's weights are held, and so where a backward beside the training leaves its gradients: whole, or in shards.

It must not reach the run's engine: FSDP2 may wait for the end of an accumulation before it reduces, and DeepSpeed would
count our gradients among the training's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from gradalign.forward import Direction
from gradalign_trainer.adapters.trl.measuring.aside import gradients_aside
from gradalign_trainer.adapters.trl.measuring.partitions import Partitions

__all__ = ["Whole", "engine_of"]


class Whole:
    """Weights that every process holds whole: one process, DDP, DeepSpeed's ZeRO-1 and 2.

    Args:
        trainer: a `trl.GRPOTrainer` whose model is prepared.

    Attributes:
        factor: to multiply a loss by, so that its gradients are sums over the processes.
        shard: this process and how many there are, each with its own part; None where the weights are whole.
    """

    factor = 1
    shard: tuple[int, int] | None = None

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._processes = trainer, trainer.accelerator.num_processes
        self._model: Any = trainer.accelerator.unwrap_model(trainer.model)

    def direction(self, **settings: Any) -> Direction:
        """A direction over the trainable weights; settings of `gradalign.forward.Direction`."""
        group = torch.distributed.group.WORLD if self._processes > 1 else None
        return Direction(self._model, group=group, **settings)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within the block backwards leave their gradients to us; behind it the training's are what they were."""
        with gradients_aside(self._parameters()):
            yield

    def recover(self) -> None:
        """Make ready for a forward again, behind one that an error broke off."""

    def add_up(self) -> None:
        """Add the gradients over the processes, where the backward has not."""
        for parameter in self._parameters() if self._processes > 1 else ():
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.distributed.all_reduce(own)
            parameter.grad = own

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self._model.parameters() if p.requires_grad]


class Fsdp2(Whole):
    """DTensors, whose gradients FSDP2 averages over the processes."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.factor, self.shard = self._processes, (trainer.accelerator.process_index, self._processes)

    def direction(self, **settings: Any) -> Direction:
        """As `Whole`'s; the tensors bring the processes that share them."""
        return Direction(self._model, **settings)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """As `Whole`'s; gradients are reduced here, where the training may wait for the end of an accumulation."""
        model: Any = self._trainer.model
        model.set_requires_gradient_sync(True)
        try:
            with super().aside():
                yield
        finally:
            model.set_requires_gradient_sync(self._trainer.accelerator.sync_gradients)

    def recover(self) -> None:
        """As `Whole`'s."""
        if hasattr(self._model, "reset_iter_state"):  # newer than the oldest torch that the package takes
            self._model.reset_iter_state()

    def add_up(self) -> None:
        """Nothing: the backward has."""

    def _parameters(self) -> list[nn.Parameter]:
        # What FSDP2 left whole after a forward lists tensors that never have a gradient.
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return super()._parameters()


class Zero3(Whole):
    """Partitions, to which the gradients are cut down while the backward runs."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self._partitions = Partitions(self._model, trainer.model_wrapped)
        self.shard = (trainer.accelerator.process_index, self._processes)

    def direction(self, **settings: Any) -> Direction:
        """As `Whole`'s."""
        return Direction(
            parameters=self._partitions,
            group=torch.distributed.group.WORLD,
            synchronize=self._partitions.gather_anew,
            **settings,
        )

    @contextmanager
    def aside(self) -> Iterator[None]:
        """As `Whole`'s."""
        try:
            with gradients_aside(self._parameters(), heard=self._partitions.keep):
                yield
        finally:
            self._partitions.release()

    def add_up(self) -> None:
        """Nothing: `Partitions.keep` has."""


def engine_of(trainer: Any) -> Whole:
    """How the model of a `trl.GRPOTrainer`, which is prepared, is held."""
    if trainer.is_fsdp_enabled:
        return Fsdp2(trainer)
    if any(hasattr(p, "ds_tensor") for p in trainer.model.parameters()):
        return Zero3(trainer)
    return Whole(trainer)
