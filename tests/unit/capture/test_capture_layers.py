"""`Sketcher.capture()` over layers and row orders that no causal LM of `test_capture.py` has: each equal to one backward
a problem, in sketches, exact dots and norms, and `.grad`."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradalign.sketch import Sketcher

ROWS, LENGTH, WIDTH = 5, 8, 6
INDEX = torch.tensor([1, 0, 2, 1, 0])


def equal(model, x, loss, index=INDEX):
    """Capture of `loss(model(x))` [rows of x] against a backward of each problem's rows alone."""
    sketcher = Sketcher(model, dim=128, dtype=torch.float64)
    want, gradients = [], []
    for problem in range(int(index.max()) + 1):
        model.zero_grad()
        (loss(model(x)) * (index == problem)).sum().backward()
        want.append(sketcher.from_grads())
        gradients.append(sketcher.gradients())
    model.zero_grad()
    loss(model(x)).sum().backward()
    against = sketcher.gradients()
    model.zero_grad()
    with sketcher.capture(index, against=against) as captured:
        loss(model(x)).sum().backward()
    torch.testing.assert_close(captured.sketches, torch.stack(want), rtol=0, atol=1e-10)
    norms = torch.stack([sum(g.square().sum() for g in each.values()).sqrt() for each in gradients])
    dots = torch.stack([sum((each[n] * against[n]).sum() for n in each) for each in gradients])
    torch.testing.assert_close(captured.norms, norms, rtol=1e-10, atol=1e-10)
    total = sum(g.square().sum() for g in against.values()).sqrt()
    torch.testing.assert_close(captured.dots, dots / total, rtol=1e-10, atol=1e-10)
    for name, gradient in sketcher.gradients().items():
        torch.testing.assert_close(gradient, against[name], rtol=1e-9, atol=1e-9)
    return captured


def by_row(out):
    return out.flatten(1).square().sum(1)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class LoraLinear(nn.Module):
    """A frozen linear layer and two trained factors beside it, as PEFT has them."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + 2.0 * self.lora_B(self.lora_A(x))


def test_lora_factors_beside_frozen_weights():
    model = nn.Sequential(LoraLinear(nn.Linear(WIDTH, 7), 2), nn.GELU(), LoraLinear(nn.Linear(7, 4), 3)).double()
    captured = equal(model, draw(ROWS, LENGTH, WIDTH), by_row)
    assert captured.sketches.abs().sum() > 0


class Dora(nn.Module):
    """A magnitude times a direction that is itself made of trained factors: no capture without its whole gradient."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(draw(4, WIDTH))

    def forward(self, x):
        return functional.linear(x, torch.tanh(self.weight) * 2.0)


def test_a_weight_that_is_computed_from_one_parameter():
    equal(Dora(), draw(ROWS, LENGTH, WIDTH), by_row)


CONVOLUTIONS = {
    "1d": (nn.Conv1d(WIDTH, 4, 3), (LENGTH,)),
    "depthwise, causal": (nn.Conv1d(WIDTH, WIDTH, 4, padding=3, groups=WIDTH), (LENGTH,)),
    "no bias, stride, dilation": (nn.Conv1d(WIDTH, 4, 2, stride=2, dilation=2, bias=False), (LENGTH,)),
    "circular": (nn.Conv1d(WIDTH, 4, 3, padding=1, padding_mode="circular"), (LENGTH,)),
    "patches": (nn.Conv2d(WIDTH, 8, 2, stride=2, groups=2), (4, 6)),
    "3d": (nn.Conv3d(WIDTH, 3, 2, padding=1), (2, 3, 2)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(kind):
    layer, size = CONVOLUTIONS[kind]
    equal(layer.double(), draw(ROWS, WIDTH, *size), by_row)


def test_a_convolution_between_other_layers():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, 4), nn.Linear(4, 3)
            self.conv = nn.Conv1d(4, 4, 3, padding=2, groups=4)

        def forward(self, x):
            y = self.conv(self.first(x).transpose(1, 2))[..., :LENGTH]
            return self.last(functional.silu(y).transpose(1, 2))

    equal(Mixer().double(), draw(ROWS, LENGTH, WIDTH), by_row)


class Use(nn.Module):
    """One square weight and one of three experts, used as a test likes."""

    def __init__(self, use):
        super().__init__()
        self.square, self.bank = nn.Parameter(draw(WIDTH, WIDTH)), nn.Parameter(draw(3, WIDTH, WIDTH) * 0.5)
        self.row = nn.Parameter(draw(WIDTH))
        self.use = use

    def forward(self, x):
        return self.use(self, x)


def changed(change):
    """The square weight after a copy of it was changed in place."""

    def use(m, x):
        weight = m.square.clone()
        change(weight)
        return x @ weight + x @ m.square

    return use


USES = {
    "scaled in place": changed(lambda w: w.mul_(2)),
    "added to in place": changed(lambda w: w.__iadd__(1).tanh_()),
    "a row of zeros": changed(lambda w: w.__setitem__(0, 0)),
    "a column of halves": changed(lambda w: w.__setitem__((slice(None), 1), 0.5)),
    "its activation in place": changed(lambda w: functional.relu(w, inplace=True)),
    "the weight on the left": lambda m, x: (m.square @ x.transpose(1, 2)) * 0.1,
    "time first, and back": lambda m, x: functional.linear(x.transpose(0, 1), m.square).transpose(0, 1),
    "time first, flat": lambda m, x: (
        functional.linear(x.transpose(0, 1).flatten(0, 1), m.square).view(LENGTH, ROWS, WIDTH).transpose(0, 1)
    ),
    "rows repeated": lambda m, x: functional.linear(x.repeat(2, 1, 1), m.square).view(2, ROWS, -1).sum(0),
    "rows repeated in place": lambda m, x: functional.linear(x.repeat_interleave(2, 0), m.square).view(ROWS, 2, -1),
    "rows joined": lambda m, x: functional.linear(torch.cat([x, x[:, :3].expand(ROWS, 3, WIDTH)], 1), m.square),
    "rows joined and shuffled": lambda m, x: functional.linear(torch.cat([x[[4, 1]], x[[0, 2, 3]]]), m.square)[
        [2, 1, 3, 4, 0]
    ],
    "rows picked by a mask": lambda m, x: torch.zeros(ROWS, LENGTH, WIDTH, dtype=x.dtype).masked_scatter(
        (x[..., :1] > 0), functional.linear(x[x[..., 0] > 0], m.square)
    ),
    "features picked": lambda m, x: functional.linear(x[..., [3, 1, 0, 2, 5, 4]], m.square),
    "heads": lambda m, x: functional.linear(x.view(ROWS, LENGTH, 2, 3).transpose(1, 2), m.square[:, :3]),
    "every expert": lambda m, x: (
        torch.bmm(x.flatten(0, 1).repeat(3, 1).view(3, -1, WIDTH), m.bank).view(3, ROWS, LENGTH, WIDTH).transpose(0, 1)
    ),
    "an expert a row": lambda m, x: torch.bmm(x[:, :1], m.bank[torch.tensor([2, 0, 2, 1, 2])]),
    "an expert a row, on the left": lambda m, x: torch.bmm(m.bank[torch.tensor([0, 0, 2, 0, 2])], x[:, 0, :, None]),
    "a vector a row": lambda m, x: x[:, 0] * m.square[torch.tensor([5, 0, 5, 1, 2])] + x[:, 1],
    "a column beside": lambda m, x: torch.cat([x, m.row.view(1, 1, WIDTH).expand(ROWS, 2, WIDTH)], 1).square(),
}


@pytest.mark.parametrize("use", USES)
def test_uses_of_one_weight(use):
    equal(Use(USES[use]), draw(ROWS, LENGTH, WIDTH), by_row)
