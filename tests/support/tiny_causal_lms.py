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
