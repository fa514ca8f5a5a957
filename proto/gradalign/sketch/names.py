"""Canonical parameter names: the same for a bare model and for any wrapping of it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["canonical_name", "trainable_parameters"]

# What DDP, FSDP1, torch.compile, activation checkpointing and PEFT put into names.
_WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}
_PREFIXES = (("module",), ("base_model", "model"))


def canonical_name(name: str) -> str:
    """A parameter's name without the parts that wrappers add to it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    for prefix in _PREFIXES:
        while len(parts) > len(prefix) and tuple(parts[: len(prefix)]) == prefix:
            parts = parts[len(prefix) :]
    return ".".join(parts)


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Canonical name and parameter of all that is trained; a tied weight once, under its first name."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield canonical_name(name), parameter
