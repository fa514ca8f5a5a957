"""`Sketcher.from_grads()`: equal to the numpy reference, on any wrapping of a model, or refused by name."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GemmaConfig, GemmaForCausalLM

import gradalign.sketch
from gradalign import Projection, SketchError, parameters_digest
from gradalign.sketch import Coverage, Sketcher, canonical_name
from gradalign.sketch.kernels import cpu as compiled
from gradalign.wire.countsketch import sketch_gradients


class Block(nn.Module):
    """A linear layer, a norm, a 3-D weight and a scalar."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.experts = nn.Parameter(torch.randn(3, 5, 4))
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return torch.einsum("bi,eij->bj", self.norm(self.linear(x)), self.experts) * self.scale


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Block().double()
    model(torch.randn(7, 6, dtype=torch.float64)).square().sum().backward()
    return model


@pytest.fixture(params=["compiled", "torch"])
def path(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(compiled, "available", lambda: False)
    elif not compiled.available():
        pytest.skip("numba is not installed")
    return request.param


def reference(named, dim, seed):
    grads = {name: p.grad.double().numpy() for name, p in named if p.grad is not None}
    return sketch_gradients(grads, dim=dim, seed=seed)


@pytest.mark.parametrize(("dim", "seed"), [(1, 0), (16, 3), (1000, 2**50), (8192, 0)])
def test_equals_the_numpy_reference_in_float64(model, path, dim, seed):
    row = Sketcher(model, dim=dim, seed=seed, dtype=torch.float64).from_grads()
    np.testing.assert_allclose(row.numpy(), reference(model.named_parameters(), dim, seed), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_numpy_reference_in_float32(model, path, dtype):
    grads = [p.grad.to(dtype) for p in model.parameters()]
    model.to(dtype)
    for p, grad in zip(model.parameters(), grads, strict=True):
        p.grad = grad
    row = Sketcher(model, dim=64).from_grads()
    exact = reference(model.named_parameters(), 64, 0)
    assert row.dtype == torch.float32
    assert np.linalg.norm(row.numpy() - exact) < 1e-5 * np.linalg.norm(exact)


def test_threads_and_blocks_change_nothing(path):
    layer = nn.Linear(700, 2100, bias=False)
    layer.weight.grad = torch.randn(2100, 700, generator=torch.Generator().manual_seed(1))
    exact = reference([("weight", layer.weight)], 128, 0)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            row = Sketcher(layer, dim=128).from_grads().numpy()
            assert np.linalg.norm(row - exact) < 1e-5 * np.linalg.norm(exact)
    finally:
        torch.set_num_threads(threads)


def test_a_gradient_that_is_a_view_is_read_as_it_stands(model, path):
    weight = model.linear.weight
    exact = Sketcher(model, dim=32, dtype=torch.float64).from_grads()
    weight.grad = weight.grad.t().contiguous().t()
    torch.testing.assert_close(Sketcher(model, dim=32, dtype=torch.float64).from_grads(), exact)


def test_projection_names_all_trainable_parameters(model):
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert Sketcher(model, dim=16, seed=3).projection == Projection(
        dim=16, seed=3, parameters=parameters_digest(shapes)
    )


def test_missing_and_empty_gradients_count_as_zero(model):
    model.empty = nn.Parameter(torch.zeros(0, 4, dtype=torch.float64))
    sketcher = Sketcher(model, dim=16, dtype=torch.float64)
    model.experts.grad = None
    model.empty.grad = torch.zeros(0, 4, dtype=torch.float64)
    named = [(n, p) for n, p in model.named_parameters() if n != "empty"]
    np.testing.assert_allclose(sketcher.from_grads().numpy(), reference(named, 16, 0), atol=1e-12)
    model.zero_grad()
    assert sketcher.from_grads().tolist() == [0.0] * 16


class Wrapped(nn.Module):
    """Puts a prefix into names, as the wrappers of torch and PEFT do."""

    def __init__(self, path, module):
        super().__init__()
        head, _, rest = path.partition(".")
        self.add_module(head, Wrapped(rest, module) if rest else module)


@pytest.mark.parametrize(
    "prefix",
    ["module", "_orig_mod", "base_model.model", "module._fsdp_wrapped_module", "module.base_model.model._orig_mod"],
)
def test_wrappers_change_nothing(model, prefix):
    bare, wrapped = Sketcher(model, dim=16), Sketcher(Wrapped(prefix, model), dim=16)
    assert wrapped.projection == bare.projection
    assert torch.equal(wrapped.from_grads(), bare.from_grads())


def test_a_compiled_model_has_the_names_of_the_bare_one(model):
    assert Sketcher(torch.compile(model, backend="eager"), dim=16).projection == Sketcher(model, dim=16).projection


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("lm_head.weight", "lm_head.weight"),
        ("module.module.lm_head.weight", "lm_head.weight"),
        ("base_model.model.q.lora_A.default.weight", "q.lora_A.default.weight"),
        ("layers.0._checkpoint_wrapped_module.mlp.weight", "layers.0.mlp.weight"),
        ("module", "module"),
        ("encoder.module.weight", "encoder.module.weight"),
    ],
)
def test_canonical_name(name, canonical):
    assert canonical_name(name) == canonical


def test_a_tied_weight_is_sketched_once_under_its_first_name():
    config = GemmaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, tie_word_embeddings=True,
    )  # fmt: skip
    model = GemmaForCausalLM(config).double()
    model(torch.tensor([[1, 5, 7]])).logits.square().sum().backward()
    sketcher = Sketcher(model, dim=64, dtype=torch.float64)
    assert dict(sketcher.coverage.tied) == {"model.embed_tokens.weight": ("lm_head.weight",)}
    np.testing.assert_allclose(
        sketcher.from_grads().numpy(), reference(model.named_parameters(), 64, 0), rtol=0, atol=1e-10
    )


def test_coverage_says_what_is_left_out_and_why(model):
    model.linear.weight.requires_grad_(False)
    coverage = Sketcher(model, dim=16).coverage
    assert dict(coverage.frozen) == {"linear.weight": 30}
    assert coverage.parameters == 5
    assert coverage.numel == 5 + 5 + 5 + 60 + 1
    assert coverage.share == pytest.approx(76 / 106)
    assert "1 frozen" in str(coverage)
    assert Coverage.of(model) == coverage


def break_nothing_trainable(model):
    model.requires_grad_(False)


def break_complex(model):
    model.scale = nn.Parameter(torch.tensor(1j))


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (break_nothing_trainable, {}, "requires_grad=True"),
        (break_complex, {}, "scale is torch.complex64"),
        (None, {"dim": 0}, "projection.dim is 0"),
        (None, {"dim": 1 << 21}, "projection.dim is 2097152"),
        (None, {"seed": -1}, "projection.seed is -1"),
        (None, {"dtype": torch.bfloat16}, "dtype is torch.bfloat16"),
    ],
)
def test_refuses_to_be_made(model, change, arguments, message):
    if change:
        change(model)
    with pytest.raises(SketchError, match=message):
        Sketcher(model, **arguments)


def test_refuses_two_parameters_of_one_name():
    model = nn.Module()
    model.a = nn.Linear(2, 2)
    model.module = nn.Module()
    model.module.a = nn.Linear(2, 2)
    with pytest.raises(SketchError, match=r"canonical name a\.weight"):
        Sketcher(model)


def spoil_frozen(model):
    model.scale.requires_grad_(False)


def spoil_shape(model):
    model.norm.weight = nn.Parameter(torch.zeros(9))


def spoil_new(model):
    model.extra = nn.Parameter(torch.zeros(2))


def spoil_inf(model):
    model.linear.weight.grad[2, 3] = torch.inf


def spoil_nan(model):
    model.scale.grad.fill_(torch.nan)


def spoil_sparse(model):
    model.linear.weight.grad = model.linear.weight.grad.to_sparse()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_frozen, r"scale was \(\) .* not trainable now"),
        (spoil_shape, r"norm.weight was \(5,\) .* is \(9,\) now"),
        (spoil_new, r"extra was not trainable .* is \(2,\) now"),
        (spoil_inf, "linear.weight holds inf or NaN"),
        (spoil_nan, "scale holds inf or NaN"),
        (spoil_sparse, "linear.weight is sparse"),
    ],
)
def test_refuses_to_sketch(model, path, spoil, message):
    sketcher = Sketcher(model, dim=16)
    spoil(model)
    with pytest.raises(SketchError, match=message):
        sketcher.from_grads()


def test_refuses_a_sketch_that_overflows(model):
    sketcher = Sketcher(model.float(), dim=1)
    model.linear.weight.grad = torch.full((5, 6), 3e38)
    model.linear.bias.grad = torch.full((5,), 3e38)
    model.experts.grad = torch.full((3, 5, 4), 3e38)
    with pytest.raises(SketchError, match="overflows"):
        sketcher.from_grads()


def test_public_names():
    public = {
        name
        for name, value in vars(gradalign.sketch).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("gradalign.")
    }
    assert public == set(gradalign.sketch.__all__)


def test_the_client_does_not_import_torch():
    code = "import sys, gradalign; print('torch' in sys.modules, 'numba' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_kernels_that_find_no_folder_for_their_cache_are_compiled_without():
    """Where numba has no locator at all: as for a user who may write nowhere."""
    script = """
from numba.core import caching
class Nowhere(caching._CacheLocator):
    @classmethod
    def from_function(cls, *_): return None
for impl in (caching.CacheImpl, caching.CodeLibraryCacheImpl, caching.CompileResultCacheImpl):
    impl._locator_classes = [Nowhere]
import numpy as np
from gradalign.sketch.kernels import cpu as compiled
from gradalign.sketch.kernels import numba_kernels as kernels
assert compiled.available()
buckets = np.zeros(4, np.int64)
one = np.zeros(1, np.uint32), np.ones(1, np.float32)
assert kernels.fixed(np.full((1, 1), 2.0), one, one, buckets, 1.0) == 2.0
assert buckets.tolist() == [2, 0, 0, 0]
"""
    subprocess.run([sys.executable, "-c", script], check=True)
