"""The local gradients of a model that FSDP1 (FullyShardedDataParallel) has flattened and sharded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gradalign.errors import SketchError
from gradalign.sketch.parameters.names import canonical_name
from gradalign.sketch.parameters.shards import LocalGradient

__all__ = ["fsdp1_local_grads"]


def fsdp1_local_grads(model: nn.Module) -> Iterator[LocalGradient]:
    """This rank's runs of all gradients, after a backward; for `Sketcher.from_local_grads(..., group=...)`.

    Make the Sketcher before the model is wrapped. FSDP averages gradients over ranks: have all ranks work on one problem,
    with the loss scaled for the mean. Under HYBRID_SHARD one replica gives its parts and the others none.

    Args:
        model: wrapped, as a whole or in parts, with or without `use_orig_params`.

    Raises:
        SketchError: a part of the model is wrapped with NO_SHARD, or not wrapped and trained.
    """
    handled: set[int] = set()
    for prefix, module in model.named_modules():
        handle = getattr(module, "_handle", None)
        if type(module).__name__ != "FullyShardedDataParallel" or handle is None:
            continue
        handled.update(id(parameter) for parameter in (handle.flat_param, *(handle.flat_param._params or ())))
        if not handle.uses_sharded_strategy:
            raise SketchError(
                f"FSDP1 holds {prefix or 'the model'} with NO_SHARD; wrap it in DDP instead, whose ranks each have whole "
                "gradients for from_grads() and capture."
            )
        group = getattr(module, "_inter_node_pg", None)
        if group is None or torch.distributed.get_rank(group) == 0:
            yield from _runs(prefix, handle)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in handled:
            raise SketchError(f"{canonical_name(name)} is trained, and FSDP1 does not hold it; wrap the whole model.")


def _runs(prefix: str, handle: Any) -> Iterator[LocalGradient]:
    flat, gradient = handle.flat_param, handle.sharded_grad
    if gradient is None:
        return
    names = flat._fqns, flat._shapes, flat._shard_param_infos
    for name, shape, info in zip(*names, strict=True):
        if info.in_shard:
            run = gradient[info.offset_in_shard : info.offset_in_shard + info.numel_in_shard]
            full = f"{prefix}.{name}" if prefix else name
            yield LocalGradient(canonical_name(full), tuple(shape), info.intra_param_start_idx, run)
