"""What `Sketcher.capture()` cannot do is an error that names the parameter or the fix; never a silent gap."""

import pytest
import torch
from torch import nn

from gradalign import SketchError
from gradalign.sketch import Sketcher

INDEX = torch.tensor([0, 1, 1])


class Opaque(torch.autograd.Function):
    """Stands for a fused kernel, which torch's API does not see."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum((0, 1))


class Model(nn.Module):
    """Two linear layers, and a weight that a test uses as it likes."""

    def __init__(self, use):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.odd = nn.Parameter(torch.randn(4))
        self.square = nn.Parameter(torch.randn(4, 4))
        self.use = use

    def forward(self, x):
        return self.use(self, self.first(x)).square().sum()


def changed(x, weight, change):
    change(weight)
    return x @ weight


def run(use, x=None, index=INDEX):
    torch.manual_seed(0)
    model = Model(use)
    x = torch.randn(3, 5, 4) if x is None else x
    with Sketcher(model, dim=16).capture(index) as captured:
        model(x).backward()
    return captured


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m, x: Opaque.apply(x, m.odd), r"odd got a gradient from an operation that capture did not see"),
        (lambda m, x: Opaque.apply(x, 1 + m.odd), r"odd got a gradient from an operation that capture did not see"),
        (lambda m, x: Opaque.apply(x, m.odd) + x * m.odd, r"odd got a gradient from an operation that capture did not"),
        (lambda m, x: torch.einsum("bti,ij->btj", x, m.square), r"square is used by torch\.functional\.einsum"),
        (lambda m, x: torch.cat([x, m.odd.expand(1, 5, 4)]), r"odd is used by torch\.cat"),
        (lambda m, x: x @ (m.square @ m.square), r"square is used by torch\.Tensor\.matmul"),
        (lambda m, x: nn.functional.conv_transpose1d(x, m.square[:, :, None]), r"square is used by .*conv_transpose1d"),
        (lambda m, x: nn.functional.conv1d(x.mT, m.square[:, :, None], padding="same"), r"square is used by .*conv1d"),
        (lambda m, x: nn.functional.prelu(x.transpose(1, 2), m.odd[:1]), r"odd is used by torch\.nn\.functional\.prelu"),
        (lambda m, x: x.sum() * m.odd, r"odd is used by torch\.Tensor\.mul"),
        (lambda m, x: x.sum((0, 1)) * m.odd, r"odd is used by torch\.Tensor\.mul"),
        (lambda m, x: nn.functional.linear(x.sum(0), m.square), r"square is used on an activation of shape \(5, 4\)"),
        (lambda m, x: nn.functional.linear(x.flip(0), m.square), r"square is used on an activation of shape"),
        (lambda m, x: nn.functional.linear(torch.tile(x, (2, 1, 1)), m.square), r"square is used on an activation of shape"),
        (lambda m, x: nn.functional.linear(x[:, :3].unfold(1, 2, 1).sum(0), m.square), r"square is used on an activation"),
        (lambda m, x: nn.functional.linear(torch.cumsum(x.transpose(0, 1), 1), m.square), r"square is used on an activa"),
        (lambda m, x: nn.functional.linear(torch.cat([x, x.flip(0)]), m.square), r"square is used on an activation"),
        (lambda m, x: nn.functional.linear(torch.cumsum(x[[2, 0, 1]], 0), m.square), r"square is used on an activation"),
        (lambda m, x: changed(x, m.square.clone(), lambda w: w.view(-1).mul_(2)), r"a value made of square was changed in"),
        (lambda m, x: changed(x, m.square.clone(), lambda w: w[1].zero_()), r"a value made of square was changed in place"),
        (lambda m, x: changed(x, m.square, lambda w: w.mul_(2)), r"square is used by torch\.Tensor\.mul_"),
        (lambda m, x: nn.functional.embedding(INDEX, m.square, max_norm=1.0), r"square is used by .*embedding"),
        (lambda m, x: nn.functional.embedding(INDEX, m.square, scale_grad_by_freq=True), r"square is used by .*embedding"),
    ],
)  # fmt: skip
def test_a_use_that_cannot_be_captured_names_the_parameter(use, message):
    with pytest.raises(SketchError, match=message):
        run(use)


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: x + 0 * m.odd.detach().sum() + 0 * m.odd.data.sum() + len(m.odd) + m.odd.numel() + m.odd.size(0),
        lambda m, x: x * m.odd.clone().contiguous().view(1, 1, 4).to(torch.float32).float(),
        lambda m, x: nn.functional.linear(x[[2, 0, 1]], m.square)[[1, 2, 0]] + 1,
        lambda m, x: nn.functional.linear(x.flatten(0, 1), m.square).view(3, 5, 4),
        lambda m, x: nn.functional.linear(x, m.square.detach()) @ m.square.T,
    ],
)
def test_harmless_uses_are_let_through(use):
    assert torch.isfinite(run(use).sketches).all()


@pytest.mark.parametrize(
    ("index", "problems", "message"),
    [
        ([0, 1, 1], None, "problem_index is list"),
        (torch.tensor([0.0, 1.0]), None, r"problem_index is torch\.float32 \(2,\)"),
        (torch.zeros(2, 2, 2, dtype=torch.long), None, r"problem_index is torch\.int64 \(2, 2, 2\)"),
        (torch.tensor([0, -2, 1]), None, "runs from -2 to 1"),
        (torch.tensor([0, 3, 1]), 3, "runs from 0 to 3; expected 0 to problems - 1 = 2"),
        (torch.tensor([-1, -1]), None, "runs from -1 to -1"),
        (torch.tensor([], dtype=torch.long), None, "problem_index is"),
    ],
)
def test_a_problem_index_of_another_kind(index, problems, message):
    with pytest.raises(SketchError, match=message):
        Sketcher(nn.Linear(2, 2)).capture(index, problems=problems)


def test_a_problem_index_for_another_batch():
    with pytest.raises(SketchError, match=r"problem_index has shape \(4,\)"):
        run(lambda m, x: x, index=torch.tensor([0, 1, 1, 0]))


@pytest.fixture
def layer():
    return nn.Linear(4, 2)


@pytest.fixture
def x():
    return torch.randn(3, 5, 4)


def test_a_backward_outside_the_block(layer, x):
    capture = Sketcher(layer, dim=16).capture(INDEX)
    with pytest.raises(SketchError, match="no gradient was captured"), capture:
        loss = layer(x).sum()
    with pytest.raises(SketchError, match="backward ran after the capture block had ended"):
        loss.backward()


def test_a_forward_outside_the_block(layer, x):
    loss = layer(x).sum()
    with pytest.raises(SketchError, match="got a gradient from an operation"), Sketcher(layer, dim=16).capture(INDEX):
        loss.backward()


def test_nested_captures(layer, x):
    sketcher = Sketcher(layer, dim=16)
    with pytest.raises(SketchError, match="do not nest"), sketcher.capture(INDEX), sketcher.capture(INDEX):
        pass
    with sketcher.capture(INDEX) as captured:
        layer(x).sum().backward()
    assert captured.sketches.shape == (2, 16)


def test_a_capture_is_used_once(layer, x):
    capture = Sketcher(layer, dim=16).capture(INDEX)
    with capture:
        layer(x).sum().backward()
    with pytest.raises(SketchError, match="has been used"), capture:
        pass


def test_sketches_before_the_end(layer, x):
    with Sketcher(layer, dim=16).capture(INDEX) as captured:
        layer(x).sum().backward()
        with pytest.raises(SketchError, match="once the with block has ended"):
            _ = captured.sketches


def test_a_model_that_changed(layer):
    sketcher = Sketcher(layer, dim=16)
    layer.bias.requires_grad_(False)
    with pytest.raises(SketchError, match=r"bias was \(2,\) .* not trainable now"), sketcher.capture(INDEX):
        pass


def test_an_inf_names_the_problem(layer, x):
    x[1, 2, 3] = torch.inf
    with pytest.raises(SketchError, match=r"problems \[1\] hold inf or NaN"), Sketcher(layer, dim=16).capture(INDEX):
        layer(x).sum().backward()


def test_an_error_in_the_block_leaves_nothing_behind(layer, x):
    sketcher = Sketcher(layer, dim=16)
    with pytest.raises(ZeroDivisionError), sketcher.capture(INDEX):
        _ = layer(x).sum() / (1 // 0)
    layer(x).sum().backward()
    plain = layer.weight.grad.clone()
    layer.zero_grad()
    with sketcher.capture(INDEX):
        layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain)


def captured_against(layer, x, **changes):
    sketcher = Sketcher(layer, dim=16)
    layer(x).square().sum().backward()
    against = {**sketcher.gradients(), **changes}
    with sketcher.capture(INDEX, against=against) as captured:
        layer(x).sum().backward()
    return sketcher, captured, against


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(4, 2)}, r"against\['weight'\] has shape \(4, 2\); the sketched parameter has \(2, 4\)"),
        ({"other": torch.zeros(4)}, r"against\['other'\] .* no such name"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "has norm 0"),
        ({"bias": torch.full((2,), torch.nan)}, "has norm nan"),
    ],
)
def test_an_unfit_validation_gradient(layer, x, changes, message):
    with pytest.raises(SketchError, match=message):
        captured_against(layer, x, **changes)


def test_dots_need_a_validation_gradient(layer, x):
    with Sketcher(layer, dim=16).capture(INDEX) as captured:
        layer(x).sum().backward()
    for name in ("dots", "norms"):
        with pytest.raises(SketchError, match="need the validation gradient"):
            getattr(captured, name)


def test_norms_do_not_add_over_backwards(layer, x):
    sketcher, captured, against = captured_against(layer, x)
    with pytest.raises(SketchError, match="onto and against"):
        sketcher.capture(INDEX, against=against, onto=captured)
    with pytest.raises(SketchError, match="onto holds sketches of 2 problems"):
        sketcher.capture(INDEX, problems=5, onto=captured)
    with sketcher.capture(INDEX, against=against):
        layer(x).sum().backward()
        loss = layer(x).sum()
        with pytest.raises(SketchError, match="a second backward reached"):
            loss.backward()


def test_overlapping_uses_have_no_exact_norm():
    model = Model(lambda m, x: x @ m.square + nn.functional.linear(x, m.square)[..., :1] * m.square[1])
    sketcher = Sketcher(model, dim=16)
    model(torch.randn(3, 5, 4)).backward()
    with (
        pytest.raises(SketchError, match="square is used as a whole and in part"),
        sketcher.capture(INDEX, against=sketcher.gradients()),
    ):
        model(torch.randn(3, 5, 4)).backward()
