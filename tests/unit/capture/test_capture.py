"""`Sketcher.capture()`: one backward gives what one backward a problem gives, and `.grad` what it would have held."""

import contextlib
import copy

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from gradalign import SketchError
from gradalign.sketch import Sketcher
from gradalign.sketch.capture import accumulate
from gradalign.sketch.hashing import factors
from gradalign.sketch.kernels import cpu as compiled
from gradalign.sketch.kernels.tables import HashTable
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


@pytest.fixture(autouse=True)
def _wide_casts(request, monkeypatch):
    """Norms cast to float32 inside models; equality in float64 needs them to stay there."""
    if "narrow" not in request.fixturenames:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture
def narrow():
    """Leave float32 as it is."""


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


PAIRS = [(kind, name) for kind in MODELS for name in ("ragged, out of order", "packed")]


@pytest.mark.parametrize(("kind", "batch"), [p for p in PAIRS if p not in [(k, "packed") for k in WHOLE_ROWS_ONLY]])
def test_equals_one_backward_a_problem(kind, batch):
    check(build(kind), BATCHES[batch])


@pytest.mark.parametrize("batch", BATCHES)
def test_any_grouping_of_rows(batch):
    check(build("qwen2"), BATCHES[batch])


def test_without_numba(monkeypatch):
    monkeypatch.setattr(compiled, "available", lambda: False)
    check(build("gemma"), BATCHES["ragged, out of order"])


@pytest.mark.parametrize("way", ["compiled", "torch"])
@pytest.mark.parametrize("dim", [1, 2, 37, 256])
def test_by_the_factors(way, dim, monkeypatch):
    """No layer formed: the sketches of the factors, convolved."""
    monkeypatch.setattr(accumulate, "cheaper", lambda *_: True)
    monkeypatch.setattr(factors, "_CHUNK", 300)
    if way == "torch":
        monkeypatch.setattr(compiled, "available", lambda: False)
    check(build("gpt2"), BATCHES["rows of no problem"], dim=dim)
    check(build("qwen2"), BATCHES["packed"], dim=dim)


def test_which_way_is_cheaper():
    def ways(rows, cols, terms, *, dim=8192):
        table = HashTable.of("w", (rows, cols), dim=dim, seed=0, device=torch.device("cpu"), dtype=torch.float32)
        return factors.cheaper(table, [0, terms])

    assert [ways(1024, 1024, n) for n in (4, 512)] == [True, False]
    assert [ways(32000, 64, n) for n in (4, 512)] == [True, False]
    assert not ways(64, 64, 1)
    assert not ways(1024, 1024, 4, dim=131072)


@pytest.mark.parametrize("kind", ["qwen2", "gemma2", "gpt2"])
def test_in_float32(kind, narrow):
    check(build(kind, torch.float32), BATCHES["ragged, out of order"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3moe", "gptoss"])
@pytest.mark.parametrize("batch", ["ragged, out of order", "packed"])
@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm"])
def test_fused_experts(kind, batch, experts, narrow):
    model = build(kind, torch.float32)
    model.set_experts_implementation(experts)
    if kind in WHOLE_ROWS_ONLY:
        batch = "ragged, out of order"
    check(model, BATCHES[batch], rtol=1e-5)


def test_attention_sinks_of_packed_rows_are_refused():
    with pytest.raises(SketchError, match=r"sinks is used on an activation of shape"):
        check(build("gptoss"), BATCHES["packed"])


@pytest.mark.parametrize("length", [4, 2])
def test_as_many_heads_as_tokens_are_not_taken_for_tokens(length):
    """Heads stand where tokens stood when a norm meets them: [B, H, T, D], once with H = T."""

    class Short(Batch):
        def __init__(self):
            super().__init__(BATCHES["packed"].index[:, :length].sort(1)[0], packed=True)
            self.ids, self.weights = self.ids[:, :length], self.weights[:, :length]

    check(build("gemma3"), Short())


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_autocast(kind, narrow):
    """Rounding of bfloat16 differs between one problem's backward and the batch's; the factors are the same."""
    around = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
    check(build(kind, torch.float32), BATCHES["ragged, out of order"], rtol=5e-2, around=around)


def test_bfloat16_weights(narrow):
    check(build("qwen2", torch.bfloat16), BATCHES["ragged, out of order"], rtol=2e-2)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad", "ignore:`.*gradient_checkpointing")
def test_gradient_checkpointing(reentrant):
    model = build("qwen2").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    check(model, BATCHES["ragged, out of order"])


def test_a_compiled_model_runs_eagerly_in_the_block():
    check(torch.compile(build("qwen2"), backend="eager"), BATCHES["ragged, out of order"])


def test_frozen_parameters_are_left_out():
    model = build("qwen2")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name or "mlp" in name or "bias" in name)
    check(model, BATCHES["ragged, out of order"])


@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing")
def test_lora():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], lora_dropout=0.0)
    model = peft.get_peft_model(build("qwen2"), config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    captured = check(model, BATCHES["ragged, out of order"])
    assert captured.sketches.abs().sum() > 0


def test_logits_of_the_last_positions_only():
    class Last(Batch):
        def loss(self, model, only=None):
            logits = model(self.ids, logits_to_keep=4).logits
            weights = self.weights[:, -4:] * (True if only is None else self.problem[:, -4:] == only)
            return (logits.square().sum(-1) * weights).sum()

    for name in ("ragged, out of order", "one problem"):
        check(build("qwen2"), Last(BATCHES[name].index))


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_rows_padded_on_the_left(kind):
    class Padded(Batch):
        def log_probs(self, model):
            mask = (torch.arange(LENGTH) >= torch.tensor([0, 3, 5, 0, 1, 7, 2])[:, None]).long()
            ids, places = self.ids * mask, (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, :-1]
            return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0] * mask[:, :-1]

    check(build(kind), Padded(BATCHES["ragged, out of order"].index))


def test_zero_advantage_gives_a_zero_row():
    batch = Batch(torch.tensor([0, 0, 1, 1, 2, 2, 2]))
    batch.weights[2:4] = 0
    assert check(build("qwen2"), batch).sketches[1].abs().max() == 0


def test_grad_can_be_left_alone():
    model, batch = build("gemma"), BATCHES["ragged, out of order"]
    sketcher = Sketcher(model, dim=64, dtype=torch.float64)
    with sketcher.capture(batch.index) as kept:
        batch.loss(model).backward()
    model.zero_grad()
    with sketcher.capture(batch.index, keep_grad=False) as captured:
        batch.loss(model).backward()
    assert gradients(model) == {}
    torch.testing.assert_close(captured.sketches, kept.sketches, rtol=0, atol=1e-12)


def test_grad_is_added_to():
    model, batch = build("qwen2"), BATCHES["one problem"]
    batch.loss(model).backward()
    once = gradients(model)
    with Sketcher(model, dim=64).capture(batch.index) as captured:
        batch.loss(model).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 2 * once[name])
    assert captured.sketches.dtype == torch.float32


def test_several_backwards_in_one_block_add():
    model, batch = build("qwen2"), BATCHES["ragged, out of order"]
    sketcher = Sketcher(model, dim=64, dtype=torch.float64)
    with sketcher.capture(batch.index, problems=5) as captured:
        for only in range(batch.problems):
            batch.loss(model, only).backward()
    with sketcher.capture(batch.index) as whole:
        batch.loss(model).backward()
    torch.testing.assert_close(captured.sketches[:3], whole.sketches, rtol=0, atol=1e-12)
    assert captured.sketches[3:].abs().max() == 0


def test_micro_batches_add():
    model, batch = build("qwen2"), BATCHES["ragged, out of order"]
    sketcher = Sketcher(model, dim=64, dtype=torch.float64)
    with sketcher.capture(batch.index) as whole:
        batch.loss(model).backward()
    captured = None
    for part in (slice(0, 3), slice(3, 4), slice(4, None)):
        micro = copy.copy(batch)
        micro.index, micro.ids, micro.weights = batch.index[part], batch.ids[part], batch.weights[part]
        micro.problem = batch.problem[part]
        with sketcher.capture(micro.index, problems=3, onto=captured) as captured:
            micro.loss(model).backward()
    torch.testing.assert_close(captured.sketches, whole.sketches, rtol=0, atol=1e-12)


class Odd(nn.Module):
    """Uses of weights that no transformer of the above has."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 6, padding_idx=0)
        self.pos = nn.Embedding(LENGTH, 6)
        self.shared = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.rms = nn.RMSNorm(6)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.gate = nn.Parameter(torch.randn(1, 1, 6))
        self.heads = nn.Parameter(torch.randn(2, 1))
        self.decay = nn.Parameter(torch.randn(6))
        self.plain = nn.Parameter(torch.randn(6, 6))
        self.bank = nn.Parameter(torch.randn(3, 6, 6))
        self.unused = nn.Linear(3, 3)
        self.dtype = torch.float64

    def forward(self, input_ids):
        x = self.embed(input_ids) + self.pos(torch.arange(input_ids.shape[1]))
        x = self.shared(self.norm(x)) + self.shared(x) * self.scale
        x = self.rms(x) * torch.exp(-self.decay) + self.gate * x - self.decay
        x = (x.view(*x.shape[:2], 2, 3) * self.heads).flatten(2)
        x = x @ self.plain + x @ self.plain.t() / self.scale
        x = x.view(-1, 6) @ self.bank[1] + nn.functional.linear(x.view(-1, 6), self.bank.transpose(1, 2)[2])
        x = x.view(*input_ids.shape, 6)
        return type("Output", (), {"logits": nn.functional.linear(x, self.embed.weight)})


def test_odd_uses_of_weights():
    torch.manual_seed(3)
    check(Odd().double(), BATCHES["ragged, out of order"])
