"""Weights that DeepSpeed's ZeRO-3 cuts among the processes: flat runs of equal length, the last one filled up."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.errors import GradAlignError
from gradalign.forward import LocalParameter

__all__ = ["Partitions"]


class Partitions:
    """This process's partitions of a model's trainable weights, and the gradients that a backward leaves for them.

    Args:
        model: prepared by DeepSpeed.
        engine: DeepSpeed's, of that model.

    Raises:
        GradAlignError: the partitions are not spread over all processes, or experts' gradients come with hooks of modules.
    """

    def __init__(self, model: nn.Module, engine: Any) -> None:
        self._model, self._engine = model, engine
        self._gradients: dict[int, Tensor] = {}
        for name, parameter in self._trainable():
            if hasattr(parameter, "ds_z3_leaf_module"):
                raise GradAlignError(
                    f"{name} lies in a leaf module of ZeRO-3 (deepspeed_moe_layer_cls_names, or set_z3_leaf_modules), whose "
                    "gradients come in an order of each process's own. Launch with ZeRO-2 or FSDP2."
                )
            spread, world = (torch.distributed.get_world_size(group) for group in (parameter.ds_process_group, None))
            if spread != world:
                raise GradAlignError(
                    f"{name} is partitioned over {spread} of {world} processes (MiCS or ZeRO++). Partition it over all of "
                    "them, or launch with FSDP2."
                )

    def iter_local_parameters(self) -> Iterator[LocalParameter]:
        """The partitions as they lie now, without what fills up the last one."""
        for name, parameter in self._trainable():
            first, count = _place(parameter)
            part = parameter.ds_tensor.data[:count]
            yield LocalParameter(name, tuple(parameter.ds_shape), first, part, partial(self._take, parameter))

    def keep(self, parameter: Any) -> None:
        """Turn the gradient that a backward just left, whole, into this process's part of its sum over the processes.

        A backward calls it, on every process for the same parameters in the same order, as ZeRO-3 needs it too.
        """
        gradient, parameter.grad = parameter.grad, None
        group, size = parameter.ds_process_group, parameter.partition_numel()
        whole = gradient.new_zeros(size * torch.distributed.get_world_size(group))
        whole[: gradient.numel()] = gradient.reshape(-1)
        own = whole.new_empty(size)
        torch.distributed.reduce_scatter_tensor(own, whole, group=group)
        own = own[: _place(parameter)[1]].to(parameter.ds_tensor.device)
        before = self._gradients.get(parameter.ds_id)
        self._gradients[parameter.ds_id] = own if before is None else before.add_(own)

    def release(self) -> None:
        """Let go of gradients that nobody took, and of weights that a backward of ours has left gathered."""
        self._gradients.clear()
        self._engine.optimizer.parameter_offload.release_backward_leftovers()

    def gather_anew(self) -> None:
        """Have the next forward gather all weights from the partitions: ZeRO-3 keeps small ones whole in between."""
        self._engine.optimizer.empty_partition_cache()

    def _take(self, parameter: Any) -> Tensor | None:
        return self._gradients.pop(parameter.ds_id, None)

    def _trainable(self) -> Iterator[tuple[str, Any]]:
        return ((name, p) for name, p in self._model.named_parameters() if p.requires_grad)


def _place(parameter: Any) -> tuple[int, int]:
    """The first element of this process's partition in the flattened weight, and how many of the weight's are in it."""
    size, whole = parameter.partition_numel(), parameter.ds_numel
    first = min(size * torch.distributed.get_rank(parameter.ds_process_group), whole)
    return first, min(size, whole - first)
