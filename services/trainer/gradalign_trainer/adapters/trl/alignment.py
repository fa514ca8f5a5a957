"""By what a run is aligned: sketches of its groups (`capture`), or products of its rollouts (`forward`)."""

from __future__ import annotations

from typing import Any

from gradalign.errors import GradAlignError
from gradalign_trainer.adapters.trl.config import GradAlignConfig

__all__ = ["CAPTURE", "FORWARD", "KINDS", "alignment_of", "check_supported"]

FORWARD, CAPTURE = "forward", "capture"
KINDS = {"products": FORWARD, "sketches": CAPTURE}
"""Which alignment the scorer's runs of each kind come of."""


def alignment_of(config: GradAlignConfig, trainer: Any) -> str | None:
    """`forward` or `capture`; None where a run that the scorer already holds decides, and else `capture`.

    Sketches give cosines where products do not, and were ahead in the example (docs/adapters-trl.md).

    Args:
        config: of the run.
        trainer: a `trl.GRPOTrainer`.
    """
    if config.alignment != "auto":
        return config.alignment
    if config.needs_sketches:
        return CAPTURE
    if config.needs_products or trainer.is_fsdp_enabled or trainer._is_vlm:
        return FORWARD
    return None


def check_supported(config: GradAlignConfig, trainer: Any, alignment: str | None) -> None:
    """Raise GradAlignError where a trainer's model cannot be measured that way."""
    if trainer.is_deepspeed_enabled:
        raise GradAlignError(
            "the model is held by DeepSpeed, whose engine keeps gradients out of `.grad`. Launch with FSDP2 (accelerate "
            "launch --use_fsdp --fsdp_version 2) or DDP, with LoRA where the optimizer's state does not fit."
        )
    if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
        raise GradAlignError(
            "the model is sharded by FSDP1, whose parameters are views of flat buffers. Take FSDP2: accelerate launch "
            "--use_fsdp --fsdp_version 2."
        )
    if alignment == CAPTURE and trainer.is_fsdp_enabled:
        raise GradAlignError(_only_forward(config, "the model is sharded by FSDP2, and sketches need whole parameters"))
    if alignment == CAPTURE and trainer._is_vlm:
        raise GradAlignError(
            _only_forward(
                config, "the processing class is of a vision-language model, and sketches are taken of text only"
            )
        )
    every = trainer.args.steps_per_generation * trainer.num_iterations
    if trainer.is_fsdp_enabled and every % trainer.args.gradient_accumulation_steps:
        raise GradAlignError(
            f"a batch is generated every {every} micro-batches and gradient_accumulation_steps is "
            f"{trainer.args.gradient_accumulation_steps}: in the middle of an accumulation FSDP2 holds gradients that are "
            "not reduced yet. Make steps_per_generation a multiple of gradient_accumulation_steps."
        )


def _only_forward(config: GradAlignConfig, why: str) -> str:
    fix = 'take alignment="forward"'
    if config.needs_sketches:
        fix += f" with a strategy and an aggregation that go with it ({config.needs_sketches} does not)"
    return f"{why}: {fix}."
