"""Canonical parameter names: the same for a bare model and for any wrapping of it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["canonical_name", "trainable_parameters"]

# What FSDP1, torch.compile and activation checkpointing put into the middle of a name.
_WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}
# What DDP and PEFT put in front of it.
_PREFIXES = (("module",), ("base_model", "model"))


def canonical_name(name: str) -> str:
    """A parameter's name without the parts that wrappers add to it.

    `module._orig_mod.base_model.model.lm_head.weight` becomes `lm_head.weight`. Names that no wrapper made are kept.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if len(parts) > len(prefix) and tuple(parts[: len(prefix)]) == prefix:
                parts, stripped = parts[len(prefix) :], True
    return ".".join(parts)


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Canonical name and parameter of all that is trained; a tied weight once, under its first name."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield canonical_name(name), parameter
