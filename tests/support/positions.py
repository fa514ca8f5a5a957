"""Small causal LMs by how they know where a token stands, which padding must not change."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gradalign_trainer.worlds.tinymodel import tiny_model


def relative_model(tokenizer, *, seed):
    """A model that sees how far apart two tokens are."""
    return tiny_model(tokenizer, seed=seed, hidden=32, mlp=64)


def absolute_model(tokenizer, *, seed):
    """A GPT-2, whose positions are learned one by one: where padding shifts them, it says something else."""
    torch.manual_seed(seed)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)).eval()


POSITIONS = {"relative positions": relative_model, "absolute positions": absolute_model}
