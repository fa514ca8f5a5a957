"""`Sketcher.capture()`: one backward gives what one backward a problem gives, whatever the model, grouping and dtype."""

import pytest
import torch
from capturekit import BATCHES, LENGTH, MODELS, VOCABULARY, WHOLE_ROWS_ONLY, Batch, build, check
from torch import nn

from gradalign import SketchError
from gradalign.sketch.capture import accumulate
from gradalign.sketch.hashing import factors
from gradalign.sketch.kernels import cpu as compiled
from gradalign.sketch.kernels.tables import HashTable

pytestmark = pytest.mark.usefixtures("_wide_casts")
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
