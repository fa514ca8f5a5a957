"""Policies: any Hugging Face causal LM, or one made on the spot; whole, or by LoRA adapters."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import PreTrainedTokenizerFast as FastTokenizer

from gradalign.errors import GradAlignError

__all__ = ["bare", "end_at", "load_policy", "load_tokenizer", "pick_device"]

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
    source: str | Path, *, device: torch.device, dtype: str = "float32", lora_rank: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder or hub id, in evaluation mode.

    It stays in evaluation mode throughout: dropout in the gradient's forward would make it the gradient of another
    policy than the one that sampled.

    Args:
        source: of the model, or of a checkpoint of adapters beside which their model still is.
        device: to put it on.
        dtype: of the weights.
        lora_rank: of LoRA adapters at all linear layers, which alone take gradients then; None for all parameters.

    Raises:
        GradAlignError: adapters are wanted and peft is not installed.
    """
    if lora_rank is not None and find_spec("peft") is None:
        raise GradAlignError("model.lora_rank needs the package peft: pip install peft. Or leave it out, to train all.")
    adapters = Path(source) / "adapter_config.json"
    base = json.loads(adapters.read_text())["base_model_name_or_path"] if adapters.is_file() else source
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    if lora_rank is not None:
        model = _with_adapters(model, source if adapters.is_file() else None, lora_rank)
    torch.nn.Module.to(model, device)
    model.eval()
    return model, load_tokenizer(source)


def _with_adapters(model: PreTrainedModel, saved: str | Path | None, rank: int) -> PreTrainedModel:
    """The model with adapters that alone take gradients: those that were saved, or fresh ones, which change nothing yet."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if saved is not None:
        again: PreTrainedModel = PeftModel.from_pretrained(model, saved, is_trainable=True)  # type: ignore[assignment]
        return again
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the adapters' first factors; the second are zero
        fresh: PreTrainedModel = get_peft_model(model, settings)  # type: ignore[assignment]
    return fresh


def bare(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, where adapters wrap it."""
    within: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()
    return within


def end_at(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Let a text of one token end completions too, as the model's `generation_config` has it from here on.

    Raises:
        GradAlignError: the tokenizer makes another number of tokens of it.
    """
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tokens) != 1:
        raise GradAlignError(
            f"stop = {text!r} is {len(tokens)} tokens of this model; expected a text of one token, a line end say."
        )
    ends = model.generation_config.eos_token_id
    known = ends if isinstance(ends, list) else [] if ends is None else [ends]
    model.generation_config.eos_token_id = sorted({*known, int(tokens[0])})
