"""Values that a model makes of its parameters before an activation meets them: constants beside them, several of them,
rows of them, one for all; each equal to one backward a problem, and the near misses refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradalign import SketchError
from gradalign.sketch import Sketcher

ROWS, LENGTH, WIDTH = 5, 8, 6
INDEX = torch.tensor([1, 0, 2, 1, 0])
PACKED = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2]]).expand(ROWS, LENGTH).contiguous()
TOKENS = torch.randint(-WIDTH, WIDTH, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Model(nn.Module):
    """A layer, and parameters of many shapes that a test uses as it likes."""

    def __init__(self, use):
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH).double()
        self.row, self.other, self.scale = (nn.Parameter(draw(WIDTH)), nn.Parameter(draw(WIDTH)), nn.Parameter(draw(1)))
        self.square, self.bank = nn.Parameter(draw(WIDTH, WIDTH)), nn.Parameter(draw(3, WIDTH, WIDTH) * 0.5)
        self.register_buffer("beta", torch.tensor(0.5, dtype=torch.float64))
        self.register_buffer("many", draw(WIDTH))
        self.use = use

    def forward(self, x):
        return self.use(self, torch.tanh(self.first(x))).square()


def experts(x):
    """Every token, once for each of three experts: [3, B * T, W]."""
    return x.flatten(0, 1).expand(3, -1, -1)


def batch(x):
    """And back, summed over the experts."""
    return x.view(3, ROWS, LENGTH, WIDTH).sum(0)


def pieces(m, x):
    """Tokens sorted by expert, cut into one piece for each, one of them empty, and put back."""
    rows, order = x.flatten(0, 1), torch.argsort(TOKENS.flatten(), stable=True)
    parts = rows[order].split([30, 0, 10], dim=0)
    joined = torch.cat([functional.linear(part, weight) for part, weight in zip(parts, m.bank, strict=True)])
    return torch.zeros_like(rows).index_add(0, order, joined).view(x.shape)


VALUES = {
    "a constant and a weight": lambda m, x: x * (m.beta + functional.softplus(m.scale)) + x * m.beta,
    "constants on both sides": lambda m, x: x * ((m.many * m.row) / torch.arange(1, WIDTH + 1) - m.many),
    "a buffer of each row": lambda m, x: functional.linear(x, m.square * m.many[:, None]),
    "two weights multiplied": lambda m, x: x * (m.row * m.other),
    "a scalar of four": lambda m, x: x * ((m.row * m.other).sum().exp() - (m.other * m.square[1]).sum().sin() + 0.2),
    "a weight twice": lambda m, x: x * (m.row * m.row + m.other),
    "a sum of matrices": lambda m, x: functional.linear(x, m.square + 2 * m.bank[1].t()),
    "a difference, by name": lambda m, x: x * torch.sub(m.row, m.other, alpha=0.5),
    "a weight over its norm": lambda m, x: functional.linear(x, m.square / m.square.norm()),
    "magnitudes and directions": lambda m, x: functional.linear(
        x, m.row[:, None] * m.square / m.square.norm(dim=1, keepdim=True)
    ),
    "a table that is scaled": lambda m, x: x + functional.embedding(TOKENS.abs() % WIDTH, m.square * m.scale),
    "in a weight's dtype": lambda m, x: (x.float().type_as(m.row) * m.row).type_as(x) + x.float().to(m.row) * m.other,
    "rows of a weight at tokens": lambda m, x: x + m.square[TOKENS],
    "rows at tokens, moved": lambda m, x: x * m.square[TOKENS].to("cpu"),
    "rows at shared positions": lambda m, x: x + m.square[TOKENS[:1]],
    "learned queries": lambda m, x: x + ((m.square[:2].expand(ROWS, -1, -1) @ x.mT).softmax(-1) @ x).mean(1, keepdim=True),
    "learned queries at each token": lambda m, x: (
        m.row.view(1, -1).expand(ROWS, LENGTH, -1, -1) @ x.view(*x.shape, 1)
    ).flatten(2),
    "learned keys at each token": lambda m, x: (
        x.view(ROWS, LENGTH, 2, 3).mT @ m.bank[0, :2].expand(ROWS, LENGTH, -1, -1)
    ).flatten(2),
    "biases of experts": lambda m, x: batch(torch.baddbmm(m.square[:3, None], experts(x), m.bank)),
    "a constant and experts": lambda m, x: batch(torch.baddbmm(m.many.expand(3, 1, -1), experts(x), m.bank)),
    "pieces by expert": pieces,
}  # fmt: skip


def by_problem(model, x, index):
    """Sketches, gradients by problem, and that of the whole batch, by a backward each."""
    sketcher, rows, gradients = Sketcher(model, dim=128, dtype=torch.float64), [], []
    masks = [(index == problem).double() for problem in range(int(index.max()) + 1)]
    for mask in [*masks, torch.ones_like(masks[0])]:
        model.zero_grad()
        (model(x) * mask.view(*index.shape, *[1] * (3 - index.ndim))).sum().backward()
        rows.append(sketcher.from_grads())
        gradients.append(sketcher.gradients())
    model.zero_grad()
    return torch.stack(rows[:-1]), gradients[:-1], gradients[-1]


@pytest.mark.parametrize("use", VALUES)
def test_equal_to_one_backward_a_problem(use):
    model, x = Model(VALUES[use]), draw(ROWS, LENGTH, WIDTH)
    want, gradients, whole = by_problem(model, x, INDEX)
    sketcher = Sketcher(model, dim=128, dtype=torch.float64)
    with sketcher.capture(INDEX, against=whole) as captured:
        model(x).sum().backward()
    torch.testing.assert_close(captured.sketches, want, rtol=0, atol=1e-10 * float(want.norm()))
    norms = torch.stack([sum(g.square().sum() for g in each.values()).sqrt() for each in gradients])
    torch.testing.assert_close(captured.norms, norms, rtol=1e-9, atol=0)
    dots = torch.stack([sum((each[name] * whole[name]).sum() for name in each) for each in gradients])
    length = sum(g.square().sum() for g in whole.values()).sqrt()
    torch.testing.assert_close(captured.dots, dots / length, rtol=1e-9, atol=1e-9 * float(length))
    for name, gradient in whole.items():
        torch.testing.assert_close(sketcher.gradients()[name], gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("use", VALUES)
def test_packed_rows_are_right_or_refused(use):
    model, x = Model(VALUES[use]), draw(ROWS, LENGTH, WIDTH)
    want, _, _ = by_problem(model, x, PACKED)
    sketcher = Sketcher(model, dim=128, dtype=torch.float64)
    spans = ["rows at shared positions", "learned queries"]
    try:
        with sketcher.capture(PACKED, keep_grad=False) as captured:
            model(x).sum().backward()
    except SketchError:
        assert use in spans
    else:
        assert use not in spans
        torch.testing.assert_close(captured.sketches, want, rtol=0, atol=1e-10 * float(want.norm()))


def changed(m, x, beside):
    """A value that was changed after a weight met it, which autograd itself does not mind in a sum."""
    weight = (m.row + beside).exp()
    beside.add_(1)
    return x * weight


REFUSED = {
    "a constant of more axes": (lambda m, x: x * (m.row + x.new_ones(LENGTH, WIDTH)), r"row is used on an activation"),
    "a sum of all rows": (lambda m, x: x * (m.row * x.detach().sum((0, 1))), r"row is used by torch\.Tensor\.mul"),
    "a constant that takes a gradient": (
        lambda m, x: x * (m.row * m.many.clone().requires_grad_()),
        r"row is used by torch\.Tensor\.mul",
    ),
    "a constant that is changed": (
        lambda m, x: changed(m, x, m.many.clone()),
        r"a value that row met in add was changed in place",
    ),
    "another weight's copy that is changed": (
        lambda m, x: changed(m, x, m.other.clone()),
        r"a value that row met in add was changed in place",
    ),
    "a product of matrices": (lambda m, x: x @ (m.square @ m.bank[0]), r"square is used by torch\.Tensor\.matmul"),
    "a maximum": (lambda m, x: x * torch.maximum(m.row, m.other), r"row is used by torch\.maximum"),
    "two in place": (lambda m, x: x * m.row.clone().mul_(m.other), r"row is used by torch\.Tensor\.mul_"),
    "a mean of rows at tokens": (
        lambda m, x: x[:, 0] + m.square[TOKENS].mean(1),
        r"square is used by torch\.Tensor\.add",
    ),
    "rows of a bank at tokens": (
        lambda m, x: x[:, :, None] * m.bank[TOKENS % 3],
        r"bank is used by torch\.Tensor\.mul",
    ),
    "queries for tokens": (
        lambda m, x: m.square.expand(LENGTH, -1, -1) @ x.permute(1, 2, 0),
        r"square is used on an activation of shape \(8, 6, 5\).* several problems in one row",
    ),
    "queries for fewer axes": (
        lambda m, x: m.row.view(1, -1).expand(ROWS, 1, -1, -1) @ x.view(*x.shape, 1),
        r"row is used by torch\.Tensor\.matmul",
    ),
    "queries on mixed rows": (
        lambda m, x: m.square.expand(ROWS, -1, -1) @ x.cumsum(0).mT,
        r"square is used on an activation .* after cumsum\(dim=0\)",
    ),
    "a scaled product of experts": (
        lambda m, x: batch(torch.baddbmm(m.square[:3, None], experts(x), m.bank, alpha=2)),
        r"square is used by torch\.baddbmm",
    ),
    "a bias of a product of activations": (
        lambda m, x: torch.baddbmm(m.row.expand(ROWS, 1, -1), x.mT, x),
        r"row is used by torch\.baddbmm",
    ),
    "a bias for each token": (
        lambda m, x: torch.baddbmm(m.square[:, :LENGTH].expand(ROWS, -1, -1), x[:, :WIDTH], x.mT @ x),
        r"square is used by torch\.baddbmm",
    ),
}


@pytest.mark.parametrize("use", REFUSED)
def test_near_misses_are_refused_by_name(use):
    f, message = REFUSED[use]
    model = Model(f)
    with pytest.raises(SketchError, match=message), Sketcher(model, dim=16).capture(INDEX):
        model(draw(ROWS, LENGTH, WIDTH)).sum().backward()
