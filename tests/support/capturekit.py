"""Causal LMs of many types, batches of problems, and capture held against one backward a problem."""

import contextlib

import numpy as np
import torch
import transformers as tf

from gradalign.sketch import Sketcher
from gradalign.wire.countsketch import sketch_gradients

VOCABULARY, ROWS, LENGTH = 23, 7, 9
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
MOE = {"num_experts_per_tok": 2, "experts_implementation": "eager"}
MODELS = {
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SMALL, tie_word_embeddings=False)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SMALL, head_dim=8)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL)),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**SMALL, head_dim=8, tie_word_embeddings=True)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**SMALL, head_dim=8, tie_word_embeddings=True)),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0, embd_pdrop=0,
            attn_pdrop=0, bos_token_id=1, eos_token_id=1,
        )
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**SMALL, num_local_experts=4, **MOE)),
    "qwen3moe": lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(**SMALL, head_dim=8, num_experts=4, moe_intermediate_size=12, **MOE)
    ),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**SMALL)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**SMALL, head_dim=8)),
    "falcon": lambda: tf.FalconForCausalLM(tf.FalconConfig(**SMALL)),
    "deepseek": lambda: tf.DeepseekV3ForCausalLM(
        tf.DeepseekV3Config(
            **SMALL | {"num_key_value_heads": 4}, moe_intermediate_size=12, n_routed_experts=4, n_group=2, topk_group=1,
            kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
            first_k_dense_replace=1, **MOE,
        )
    ),
    "llama4": lambda: tf.Llama4ForCausalLM(
        tf.Llama4TextConfig(**SMALL, head_dim=8, num_local_experts=4, intermediate_size_mlp=24)
    ),
    "gptoss": lambda: tf.GptOssForCausalLM(tf.GptOssConfig(**SMALL, head_dim=8, num_local_experts=4, **MOE)),
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, pad_token_id=0)
    ),
}  # fmt: skip
WHOLE_ROWS_ONLY = ["gptoss", "mamba"]  # attention sinks and convolutions span the tokens of a row


def build(kind, dtype=torch.float64):
    torch.manual_seed(0)
    model = MODELS[kind]().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


class Batch:
    """Token log-probabilities with a weight each: padding has weight 0, a zero-advantage problem too."""

    def __init__(self, index, *, packed=False):
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
        weights = torch.randn(ROWS, LENGTH, generator=generator, dtype=torch.float64)
        self.weights = weights * (torch.rand(ROWS, LENGTH, generator=generator) < 0.8)
        self.index = index
        self.problem = index if packed else index[:, None].expand(ROWS, LENGTH)
        self.packed = packed
        self.problems = int(index.max()) + 1

    def log_probs(self, model):
        arguments = {}
        if self.packed:
            seen = (self.problem[:, None, :, None] == self.problem[:, None, None, :]).tril()
            arguments["attention_mask"] = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, -1e9)
        logits = model(input_ids=self.ids, **arguments).logits[:, :-1]
        return torch.log_softmax(logits, -1).gather(-1, self.ids[:, 1:, None])[..., 0]

    def loss(self, model, only=None):
        weights = self.weights[:, 1:] * (self.problem[:, :-1] == self.problem[:, 1:])
        if only is not None:
            weights = weights * (self.problem[:, 1:] == only)
        return -(self.log_probs(model) * weights).sum()


BATCHES = {
    "ragged, out of order": Batch(torch.tensor([2, 0, 1, 0, 2, 2, 0])),
    "even, in order": Batch(torch.arange(ROWS)),
    "one problem": Batch(torch.zeros(ROWS, dtype=torch.long)),
    "rows of no problem": Batch(torch.tensor([0, -1, 1, 1, 2, -1, 2])),
    "packed": Batch(torch.randint(0, 5, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2)).sort(1)[0], packed=True),
}  # fmt: skip


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check(model, batch, *, dim=256, rtol=1e-10, around=contextlib.nullcontext):
    """Capture against one backward a problem, sketched by from_grads() and by the numpy reference."""
    sketcher = Sketcher(model, dim=dim, dtype=torch.float64)
    rows, exact, each = [], [], []
    for problem in range(batch.problems):
        model.zero_grad()
        with around():
            loss = batch.loss(model, problem)
        loss.backward()
        rows.append(sketcher.from_grads())
        each.append(gradients(model))
        named = {n.removeprefix("_orig_mod."): g.double().numpy() for n, g in gradients(model).items()}
        exact.append(sketch_gradients(named, dim=dim, seed=0))
    model.zero_grad()
    with around():
        loss = batch.loss(model)
    loss.backward()
    whole = gradients(model)
    model.zero_grad()
    with sketcher.capture(batch.index) as captured:
        with around():
            loss = batch.loss(model)
        loss.backward()
    want = torch.stack(rows)
    assert (captured.sketches - want).norm() <= rtol * want.norm()
    if not hasattr(model, "peft_config"):
        assert np.linalg.norm(captured.sketches.numpy() - exact) <= rtol * want.norm()
    check_exact(sketcher, model, batch, each, rtol=rtol, around=around)
    kept = gradients(model)
    assert kept.keys() == whole.keys()
    for name, gradient in whole.items():
        assert (kept[name] - gradient).norm() <= 10 * rtol * max(1.0, gradient.norm()), name
    return captured


def check_exact(sketcher, model, batch, each, *, rtol, around):
    """Dots and norms against those of whole gradients."""
    kept = {name: p.grad for name, p in model.named_parameters()}
    against = sketcher.gradients()
    flat = torch.stack([torch.cat([g[n].double().flatten() for n in sorted(each[0])]) for g in each])
    target = sum(g.double().square().sum() for g in against.values()).sqrt()
    dots = torch.stack(
        [sum((g[n].double() * whole[n].double()).sum() for n in g) for g, whole in products(each, model)]
    )
    with sketcher.capture(batch.index, against=against, keep_grad=False) as captured:
        with around():
            loss = batch.loss(model)
        loss.backward()
    norms = flat.norm(dim=1)
    assert (captured.norms - norms).abs().max() <= rtol * norms.max()
    assert (captured.dots - dots / target).abs().max() <= rtol * norms.max()
    assert all(p.grad is kept[name] for name, p in model.named_parameters())


def products(each, model):
    """Each problem's gradient with the model's."""
    return [(gradient, gradients(model)) for gradient in each]
