"""By what a run is aligned: sketches of its groups (`capture`), or products of its rollouts (`forward`)."""

from __future__ import annotations

from typing import Any

from gradalign_trainer.adapters.trl.config import GradAlignConfig

__all__ = ["CAPTURE", "FORWARD", "KINDS", "alignment_of", "is_partitioned"]

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
    if config.needs_products or trainer.is_fsdp_enabled or is_partitioned(trainer) or trainer._is_vlm:
        return FORWARD
    return None


def is_partitioned(trainer: Any) -> bool:
    """Whether DeepSpeed's ZeRO-3 cuts the model's weights among the processes."""
    return bool(trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3)
