"""Policies: any Hugging Face causal LM, or one made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as FastTokenizer

__all__ = ["load_policy", "load_tokenizer", "pick_device"]

_PLAIN_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}


def pick_device(name: str) -> torch.device:
    """The device of a setting: `auto` is cuda where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id.

    A folder that names the plain class is taken at its word: `AutoTokenizer` would make a Qwen2 tokenizer of it,
    because of the model beside it, and add a token that the model has no row for.
    """
    settings = Path(source) / "tokenizer_config.json"
    if settings.is_file() and json.loads(settings.read_text()).get("tokenizer_class") in _PLAIN_CLASSES:
        plain: PreTrainedTokenizerBase = FastTokenizer.from_pretrained(source)
        return plain
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    return tokenizer


def load_policy(
    source: str | Path, *, device: torch.device, dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder or hub id, in evaluation mode.

    It stays in evaluation mode throughout: dropout in the gradient's forward would make it the gradient of another
    policy than the one that sampled.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    torch.nn.Module.to(model, device)
    model.eval()
    return model, load_tokenizer(source)
