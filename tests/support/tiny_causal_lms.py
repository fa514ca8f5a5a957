"""Tiny transformers models made on the spot, and GRPO-like batches for them."""

from __future__ import annotations

import warnings

import torch
from torch.nn.functional import log_softmax

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def tiny(kind: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **more):
    """A causal LM of a model type, with SIZES where its configuration knows them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    experts = more.pop("experts_implementation", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.for_model(kind, **{**SIZES, **more})
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if experts:
        model.set_experts_implementation(experts)  # the default has no float64
    return model.eval()


# Values of the attributes that make a default configuration large, whichever of them a type has.
_SMALL = {
    **SIZES, "head_dim": 8, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "ffn_dim": 48, "d_model": 32,
    "decoder_layers": 2, "encoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "n_positions": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "index_topk": 8, "index_n_heads": 2, "index_head_dim": 8,
    "state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_ssm": 64,
    "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 8, "mamba_chunk_size": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "lru_width": 32, "attention_hidden_size": 32,
    "num_heads": 4, "num_layers": 2, "d_ff": 48, "d_kv": 8, "embedding_size": 32, "rotary_dim": 8, "sliding_window": 8,
    "num_kv_shared_layers": 0, "time_step_rank": 4, "expand": 2, "first_k_dense_replace": 1, "n_heads": 4, "n_layers": 2,
    "global_head_dim": 8, "num_global_key_value_heads": 2, "max_seq_len": 64,
}  # fmt: skip


def shrunken(config):
    """The configuration with small values, in place; also those inside it."""
    for name, value in _SMALL.items():
        if isinstance(getattr(config, name, None), int) and not isinstance(getattr(config, name), bool):
            setattr(config, name, value)
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and name in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types"):
            setattr(config, name, [*value[:1], *value[-1:]])
        elif hasattr(value, "to_dict"):
            shrunken(value)
    return config


class Batch(dict):
    """Rows of tokens with their completions' log-probs: `batch.logprobs(model)`.

    Attributes:
        weights: float [B]. mask: bool [B, T]; T counts all tokens but the first.
    """

    def __init__(self, rows: int = 8, length: int = 12, vocabulary: int = 64, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, vocabulary, (rows, length), generator=random)
        lengths = torch.randint(length // 2, length + 1, (rows,), generator=random)
        attention = torch.arange(length)[None] < lengths[:, None]
        super().__init__(input_ids=torch.where(attention, ids, 0), attention_mask=attention.long())
        self.labels = self["input_ids"][:, 1:]
        self.mask = attention[:, 1:] & (torch.arange(length - 1)[None] >= 3)
        self.weights = torch.randn(rows, generator=random) / self.mask.sum()

    def loss(self, model) -> torch.Tensor:
        """Sum of all c_i."""
        return self.shares(model).sum()

    def shares(self, model) -> torch.Tensor:
        """Each row's c_i, [B]."""
        return -(self.weights * (logprobs_of(model)(self) * self.mask).sum(1))


def logprobs_of(model, temperature: float = 1.0):
    """A trainer's log-prob function."""

    def logprobs(batch):
        logits = model(**batch, use_cache=False).logits[:, :-1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return log_softmax(logits / temperature, -1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]

    return logprobs


def exact_products(model, batch, against) -> torch.Tensor:
    """Products of each row's gradient with v / |v| by one backward a row, float64 [B]."""
    named = [p for p in model.parameters() if p.requires_grad]
    length = torch.stack([v.double().square().sum() for v in against.values()]).sum().sqrt()
    found = []
    for share in batch.shares(model):
        gradients = torch.autograd.grad(share, named, retain_graph=True, allow_unused=True)
        pairs = [(g, against[p]) for p, g in zip(named, gradients, strict=True) if g is not None and p in against]
        found.append(sum((g.double() * v.double()).sum() for g, v in pairs) / length)
    return torch.stack(found)


def gradients_of(model) -> dict:
    """Copies of `.grad` by parameter."""
    return {p: p.grad.clone() for p in model.parameters() if p.grad is not None}
