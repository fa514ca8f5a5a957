"""Models and tokenizers made on the spot: a tiny Qwen2 with a character or a byte vocabulary.

They are ordinary `transformers` objects, so everything downstream treats them like any other causal LM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

__all__ = ["byte_tokenizer", "character_tokenizer", "tiny_model"]

PAD, EOS = "<pad>", "<eos>"


def _wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, padding_side="left", clean_up_tokenization_spaces=False
    )


def character_tokenizer(characters: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token per character; `<pad>` is 0 and `<eos>` is 1. Characters outside the vocabulary raise on encoding."""
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return _wrapped(backend)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, so that any text has tokens; `<pad>` is 0 and `<eos>` is 1; 258 in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend)


def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    mlp: int = 192,
    positions: int = 1024,
) -> Qwen2ForCausalLM:
    """A fresh Qwen2 in float32 on the CPU; about 110k parameters as given, embeddings untied.

    The configuration names no `pad_token_id`: it would become the embedding's `padding_idx`, whose row autograd
    zeroes.

    Args:
        tokenizer: its vocabulary sizes the embeddings, its `eos_token_id` ends generation.
        seed: of the initial weights; the global random state is left as it was.
        hidden: width.
        layers: number of blocks.
        heads: attention heads, also key-value heads.
        mlp: width of the gated MLP.
        positions: longest sequence.
    """
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        use_sliding_window=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.eval()
    return model
