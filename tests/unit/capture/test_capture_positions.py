"""Look-ups at positions that all rows of a batch share: in the shape that the model expects, and right by problem."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradalign import SketchError
from gradalign.sketch import Sketcher

ROWS, LENGTH, WIDTH, HEADS, VOCABULARY = 4, 7, 6, 2, 11
INDEX = torch.tensor([0, 1, 1, 2])
PACKED = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2, 2], [3, 3, 3, 3, 4, 4, 4], [1, 1, 0, 0, 0, 2, 2]])


class Model(nn.Module):
    """A look-up of tokens, one of positions that a test uses as it likes, and a head."""

    def __init__(self, use, **options):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 5)
        self.places = nn.Embedding(9, WIDTH, **options)
        self.square, self.row = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.register_buffer("sines", torch.randn(LENGTH, WIDTH))
        self.use = use
        self.double()

    def forward(self, ids):
        x = self.tokens(ids)
        return self.head(torch.tanh(self.use(self, x, self.places(torch.arange(x.shape[1])))))


def rotated(model, x, places):
    """As RoFormer turns queries and keys: halves of what was looked up, each twice, over all heads."""
    places = places[None, None, :, : WIDTH // HEADS + 1]
    sin, cos = places.chunk(2, dim=-1)
    sin, cos = (torch.stack([each, each], -1).reshape_as(places) for each in (sin, cos))
    heads = torch.cat([x, x[..., :2]], -1).view(len(x), x.shape[1], HEADS, -1).transpose(1, 2)
    turned = torch.stack([-heads[..., 1::2], heads[..., ::2]], -1).reshape_as(heads)
    return (heads * cos + turned * sin).transpose(1, 2).flatten(2)[..., :WIDTH]


def changed(change):
    def use(_, x, places):
        change(places)
        return x + places

    return use


SHAPES = {
    "scaled in place": changed(lambda p: p.mul_(3)),
    "the first set": changed(lambda p: p.__setitem__(0, 0.5)),
    "shifted in place": lambda m, x, p: x + p.__iadd__(m.sines).cos_(),
    "added": lambda m, x, p: x + p,
    "added, and first": lambda m, x, p: p + x,
    "multiplied": lambda m, x, p: x * p.sigmoid(),
    "scaled by a buffer": lambda m, x, p: x + p * m.sines,
    "with an axis of the batch": lambda m, x, p: x + p[None],
    "expanded": lambda m, x, p: x + p.unsqueeze(0).expand(len(x), -1, -1),
    "expanded like": lambda m, x, p: x + p.expand_as(x),
    "halves of the features": lambda m, x, p: x * p[:, : WIDTH // 2].repeat(1, 2) + p[:, WIDTH // 2 :].sin().repeat(1, 2),
    "turned around": lambda m, x, p: x + p.flip(0),
    "the last alone": lambda m, x, p: x + p[-1],
    "their mean": lambda m, x, p: x + p.mean(0),
    "others of them": lambda m, x, p: x + p[torch.arange(x.shape[1]).flip(0) // 2],
    "transposed twice": lambda m, x, p: x + p.t().contiguous().t(),
    "over heads": rotated,
    "through a layer": lambda m, x, p: x + functional.linear(functional.layer_norm(p, (WIDTH,)), m.square),
    "normed by weights": lambda m, x, p: x + functional.layer_norm(p, (WIDTH,), m.row, m.row),
    "beside another weight": lambda m, x, p: x + p * m.row,
    "squared": lambda m, x, p: x + p * p,
    "two parts of it": lambda m, x, p: x + torch.cat([p[:, 3:], p[:, :3]], -1) * p,
    "as a weight": lambda m, x, p: (x @ p.t()) @ m.sines,
    "dropped out": lambda m, x, p: x + functional.dropout(p, 0.5, training=False),
    "chosen by the tokens": lambda m, x, p: torch.where(x > 0, x, p),
    "cast": lambda m, x, p: x + p.to(torch.float64).type_as(x),
    "two of it, in a row": lambda m, x, p: x + torch.cat([p[:, 2:].sin(), -p[:, :2]], 1),
    "a layer and a function": lambda m, x, p: x * functional.linear(p, m.square).tanh(),
    "used twice": lambda m, x, p: (x + p) * p,
}  # fmt: skip


def one_by_one(model, ids, index):
    """Sketches, exact norms and products of one backward a problem."""
    sketcher, rows, gradients = Sketcher(model, dim=128, dtype=torch.float64), [], []
    for problem in range(int(index.max()) + 1):
        model.zero_grad()
        weight = (
            (index == problem).double() if index.ndim == 2 else (index == problem).double()[:, None].expand(ids.shape)
        )
        (model(ids).square().sum(-1) * weight).sum().backward()
        rows.append(sketcher.from_grads())
        gradients.append(sketcher.gradients())
    model.zero_grad()
    return torch.stack(rows), gradients


def captured(model, ids, index, against=None):
    sketcher = Sketcher(model, dim=128, dtype=torch.float64)
    with sketcher.capture(index, against=against) as block:
        model(ids).square().sum().backward()
    return block


def tokens():
    return torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("use", SHAPES)
@pytest.mark.parametrize("index", [INDEX, torch.zeros(ROWS, dtype=torch.long), torch.tensor([1, -1, 0, 1])])
def test_positions_are_what_the_model_asked_for(use, index):
    model, ids = Model(SHAPES[use], padding_idx=2), tokens()
    want, gradients = one_by_one(model, ids, index)
    plain = model(ids)
    block = captured(model, ids, index)
    torch.testing.assert_close(block.sketches, want, rtol=0, atol=1e-9 * float(want.norm()))
    with Sketcher(model, dim=8).capture(index):
        torch.testing.assert_close(model(ids), plain)
        model(ids).sum().backward()
    model.zero_grad()
    model(ids).square().sum().backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    block = captured(model, ids, index, against=whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)
    norms = torch.stack([torch.stack([g.square().sum() for g in each.values()]).sum().sqrt() for each in gradients])
    torch.testing.assert_close(block.norms, norms, rtol=1e-9, atol=1e-9)


PACKABLE = ["added", "multiplied", "cast", "chosen by the tokens", "through a layer"]


@pytest.mark.parametrize("use", SHAPES)
def test_packed_rows_are_right_or_refused(use):
    model, ids = Model(SHAPES[use]), tokens()
    want, _ = one_by_one(model, ids, PACKED)
    try:
        block = captured(model, ids, PACKED)
    except SketchError:
        assert use not in PACKABLE
    else:
        torch.testing.assert_close(block.sketches, want, rtol=0, atol=1e-9 * float(want.norm()))


def changed_by_weight(m, x, p):
    p.add_(m.row)
    return x + p


REFUSED = {
    "added to by a weight in place": changed_by_weight,
    "added to itself in place": lambda m, x, p: x + p.add_(p.sin()),
    "time first": lambda m, x, p: (x.transpose(0, 1) + p[:, None]).transpose(0, 1),
    "repeated by hand": lambda m, x, p: x + p.repeat(len(x), 1, 1),
    "in an einsum": lambda m, x, p: x + torch.einsum("btd,sd->bts", x, p) @ m.sines,
    "in order of the tokens": lambda m, x, p: x + p[x.argmax(-1)],
    "joined to the rows": lambda m, x, p: torch.cat([x, p[None]])[:-1],
}


LATE = {
    "features of a layer": lambda m, x, p: x[..., :3] @ m.square[:3] + functional.linear(p, m.square)[:, :1],
    "a layer's mean": lambda m, x, p: x + functional.linear(p, m.square).mean(0),
    "over heads, after a layer": lambda m, x, p: rotated(m, x, functional.linear(p, m.square)),
    "of four axes": lambda m, x, p: (x[:, None] + functional.linear(p, m.square))[:, 0],
}


@pytest.mark.parametrize("use", LATE)
@pytest.mark.parametrize("index", [INDEX, torch.zeros(ROWS, dtype=torch.long)])
def test_what_depends_on_an_axis_that_the_model_has_not_is_refused(use, index):
    with pytest.raises(SketchError, match=r"which in the model has no axis of the batch"):
        captured(Model(LATE[use]), tokens(), index)


@pytest.mark.parametrize("use", REFUSED)
def test_what_cannot_be_taken_apart_is_refused(use):
    with pytest.raises(SketchError, match=r"places\.weight is used"):
        captured(Model(REFUSED[use]), tokens(), INDEX)


def test_dropout_of_a_weight_alone_is_refused_and_of_positions_is_drawn_for_each_row():
    model = Model(lambda m, x, p: x @ functional.dropout(m.square, 0.5))
    with pytest.raises(SketchError, match=r"square is used by torch\.nn\.functional\.dropout"):
        captured(model, tokens(), INDEX)
    model = Model(lambda m, x, p: x + functional.dropout(p, 0.5))
    block = captured(model, tokens(), INDEX)
    whole = Sketcher(model, dim=128, dtype=torch.float64).from_grads()
    torch.testing.assert_close(block.sketches.sum(0), whole, rtol=0, atol=1e-9 * float(whole.norm()))
