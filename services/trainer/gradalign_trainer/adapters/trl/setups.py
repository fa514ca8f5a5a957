"""What a run is refused for: a model that cannot be measured as it is held, and processes that were given other things."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from accelerate.utils import gather_object

from gradalign.errors import GradAlignError
from gradalign_trainer.adapters.trl.alignment import CAPTURE, is_partitioned
from gradalign_trainer.adapters.trl.config import GradAlignConfig

__all__ = ["check_agreement", "check_supported"]

OF_RANK_0 = ("scorer_url", "api_key", "timeout", "retries", "sketch_dtype")
FSDP2 = "accelerate launch --use_fsdp --fsdp_version 2"


def check_supported(config: GradAlignConfig, trainer: Any, alignment: str | None) -> None:
    """Raise GradAlignError where a trainer's model cannot be measured that way.

    Args:
        config: of the run.
        trainer: a `trl.GRPOTrainer`.
        alignment: `forward` or `capture`; None where that is not settled yet.
    """
    for fault in (*_of_launch(trainer), *_of_alignment(config, trainer, alignment)):
        raise GradAlignError(fault)


def _of_launch(trainer: Any) -> Iterator[str]:
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        yield f"the model is sharded by FSDP1, whose parameters are views of flat buffers. Take FSDP2: {FSDP2}."
    mesh = getattr(trainer.accelerator, "parallelism_config", None)
    for kind in ("tp", "cp", "sp"):
        size = getattr(mesh, f"{kind}_size", None) or 1
        if size > 1:
            yield (
                f"accelerate's parallelism_config has {kind}_size = {size}: several processes then work on the same "
                f"rollouts, which the adapter takes for rollouts of their own. Leave {kind}_size at 1."
            )
    if trainer.is_deepspeed_enabled:
        yield from _of_deepspeed(trainer.accelerator.state.deepspeed_plugin.deepspeed_config)
    every = trainer.args.steps_per_generation * trainer.num_iterations
    if trainer.is_fsdp_enabled and every % trainer.args.gradient_accumulation_steps:
        yield (
            f"a batch is generated every {every} micro-batches and gradient_accumulation_steps is "
            f"{trainer.args.gradient_accumulation_steps}: in the middle of an accumulation FSDP2 holds gradients that are "
            "not reduced yet. Make steps_per_generation a multiple of gradient_accumulation_steps."
        )


def _of_deepspeed(config: Mapping[str, Any]) -> Iterator[str]:
    zero = config.get("zero_optimization", {})
    weights = (zero.get("offload_param") or {}).get("device")
    found = {
        "zero_optimization.offload_param.device": (weights == "nvme", "cpu or none"),
        "zero_optimization.zero_hpz_partition_size": (int(zero.get("zero_hpz_partition_size") or 1) > 1, "1"),
        "zero_optimization.mics_shard_size": (int(zero.get("mics_shard_size") or -1) > 0, "-1"),
        "zero_optimization.zero_quantized_weights": (bool(zero.get("zero_quantized_weights")), "false"),
        "zero_optimization.zenflow": (bool(zero.get("zenflow")), "null"),
        "compile.deepcompile": (bool(config.get("compile", {}).get("deepcompile")), "false"),
        "tensor_parallel.autotp_size": (int(config.get("tensor_parallel", {}).get("autotp_size") or 0) > 1, "0"),
    }
    for setting, (is_there, instead) in found.items():
        if is_there:
            yield (
                f"DeepSpeed's setting {setting} keeps weights where they cannot be moved in place, or gathers others than "
                f"those. Set it to {instead}, or launch with FSDP2: {FSDP2}."
            )


def _of_alignment(config: GradAlignConfig, trainer: Any, alignment: str | None) -> Iterator[str]:
    if alignment != CAPTURE:
        return
    fix = 'take alignment="forward"'
    if config.needs_sketches:
        fix += f" with a strategy and an aggregation that go with it ({config.needs_sketches} does not)"
    if is_partitioned(trainer):
        yield f"the model is partitioned by DeepSpeed's ZeRO-3, and sketches need whole parameters: {fix}."
    if trainer._is_vlm:
        yield f"the processing class is of a vision-language model, and sketches are taken of text only: {fix}."


def check_agreement(config: GradAlignConfig, datasets: Mapping[str, Sequence[str]]) -> None:
    """Raise GradAlignError on all processes where they were given other things; all call it together.

    Args:
        config: of this process.
        datasets: the problem ids of each, by the dataset's name, in order.
    """
    ours: dict[str, Any] = {name: _told(ids) for name, ids in datasets.items()}
    for each in fields(config):
        if each.name not in (*OF_RANK_0, "validation_dataset"):
            ours[f"GradAlignConfig.{each.name}"] = getattr(config, each.name)
    everyone: list[dict[str, Any]] = gather_object([ours])
    for name, first in everyone[0].items():
        for rank, theirs in enumerate(everyone):
            if theirs[name] != first:
                raise GradAlignError(
                    f"{name} is {first} on process 0 and {theirs[name]} on process {rank}. Give all processes the same "
                    "settings, and the same rows in the same order: seed what shuffles or samples them."
                )


def _told(ids: Sequence[str]) -> str:
    return f"{len(ids)} problems with the ids {hashlib.sha256(repr(list(ids)).encode()).hexdigest()[:12]}"
