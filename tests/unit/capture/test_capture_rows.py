"""Rows of a batch that a model mixes or reorders: capture refuses by the names of operation and parameter, or is right."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradalign import SketchError
from gradalign.sketch import Sketcher

ROWS, WIDTH, VOCABULARY = 4, 6, 11
INDEX = torch.tensor([0, 1, 1, 2])
ORDER = torch.tensor([2, 0, 3, 1])


class Model(nn.Module):
    """`head(tanh(lin(f(emb(ids)))))`."""

    def __init__(self, f=lambda x: x, ids=lambda i: i):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.lin, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.bank = nn.Parameter(torch.randn(ROWS, WIDTH, WIDTH))
        self.f, self.ids = f, ids

    def forward(self, ids):
        return self.head(torch.tanh(self.lin(self.f(self.emb(self.ids(ids))))))


def tokens(length=ROWS):
    return torch.randint(0, VOCABULARY, (ROWS, length), generator=torch.Generator().manual_seed(1))


def captured(model, ids):
    sketcher = Sketcher(model, dim=128)
    with sketcher.capture(INDEX) as block:
        model(ids).square().sum().backward()
    return block.sketches


def equal(model, ids):
    """Capture against one backward a problem, of the rows of that problem alone."""
    sketcher, rows = Sketcher(model, dim=128), []
    for problem in range(3):
        model.zero_grad()
        model(ids[problem == INDEX]).square().sum().backward()
        rows.append(sketcher.from_grads())
    want = torch.stack(rows)
    assert (captured(model, ids) - want).norm() <= 1e-5 * want.norm()


class Turned(torch.autograd.Function):
    """A kernel of its own, which no torch function mode looks into."""

    @staticmethod
    def forward(ctx, x):
        out = torch.empty_like(x)
        out.numpy()[:] = x.detach().numpy()[::-1]
        return out

    @staticmethod
    def backward(ctx, gradient):
        return gradient.flip(0)


def dispatched(x):
    """GShard: tokens to experts, as many as there are rows."""
    tokens = x.mean(1)
    gate = torch.softmax(tokens[:, :ROWS], -1)[:, :, None]
    return torch.einsum("sec,sm->ecm", gate, tokens)


def changed(change):
    def step(x):
        copy = x.clone()
        change(copy)
        return copy

    return step


MIXED = {
    "cumsum": (lambda x: x.cumsum(0), r"cumsum\(dim=0\)"),
    "softmax": (lambda x: x.softmax(0), r"softmax\(dim=0\)"),
    "softmax by name": (lambda x: functional.softmax(x, dim=0), r"softmax\(dim=0\)"),
    "cummax": (lambda x: torch.cummax(x, 0)[0], r"cummax\(dim=0\)"),
    "sort": (lambda x: x.sort(dim=0).values, r"sort\(dim=0\)"),
    "roll": (lambda x: x.roll(1, 0), r"roll\(1, 0\)"),
    "centred": (lambda x: x - x.mean(0), r"mean\(dim=0\)"),
    "in place": (changed(lambda x: x.cumsum_(0)), r"cumsum\(dim=0\)"),
    "a view in place": (changed(lambda x: x.view(-1).cumsum_(0)), r"cumsum\(dim=0\)"),
    "a write of rows": (changed(lambda x: x[1:].add_(x[:-1].clone())), r"add\(\)"),
    "data": (changed(lambda x: x.data.copy_(x.data.flip(0))), r"flip\(0\)"),
    "pieces of other rows": (lambda x: torch.add(*x.chunk(2)), r"add\(\)"),
    "two orders": (lambda x: torch.where(x > 0, x, x[ORDER]), r"where\(\)"),
    "batch norm": (lambda x: functional.batch_norm(x.mT, None, None, training=True).mT, r"batch_norm"),
    "a product": (lambda x: torch.einsum("ab,btd->atd", torch.ones(ROWS, ROWS), x), r"einsum\('ab,btd->atd'\)"),
    "similarities": (lambda x: (x.flatten(1) @ x.flatten(1).T)[..., None] * x[:, :1], r"matmul\(\)"),
    "attention": (
        lambda x: functional.scaled_dot_product_attention(*[x.transpose(0, 1)] * 3),
        r"scaled_dot_product_att",
    ),
    "Fourier": (lambda x: torch.fft.fft(x, dim=0).real, r"fft_fft\("),
    "unknown": (
        lambda x: torch.linalg.svd(x.flatten(1), full_matrices=False)[0][..., None] * x[:, :1],
        r"linalg_svd\(",
    ),
    "vmap": (
        torch.vmap(lambda a: a.cumsum(0), in_dims=1, out_dims=1),
        r"\w+ \(an operation that capture did not see\)",
    ),
    "a function": (Turned.apply, r"Turned \(an operation that capture did not see\)"),
    "aten": (lambda x: torch.ops.aten.cumsum(x, 0), r"cumsum\("),
}


@pytest.mark.parametrize("way", MIXED)
def test_mixed_rows_name_the_operation_and_the_parameter(way):
    f, operation = MIXED[way]
    with pytest.raises(
        SketchError, match=rf"lin\.weight is used on an activation .* after {operation}.*from_grads\(\)"
    ):
        captured(Model(f), tokens())


def test_experts_are_not_taken_for_rows():
    class Experts(Model):
        def forward(self, ids):
            return torch.bmm(dispatched(self.emb(ids)), self.bank)

    with pytest.raises(SketchError, match=r"bank is used .* after einsum\('sec,sm->ecm'\)"):
        captured(Experts(), tokens())


REORDERED = {
    "time for rows": (lambda x: x.movedim(0, 1), r"movedim\(0, 1\)"),
    "shuffled": (lambda x: x[ORDER], r"x\[key\]"),
    "pieces swapped": (lambda x: torch.cat(x.split([1, 3])[::-1]), r"cat\(\)"),
    "one row for all": (lambda x: x[:1].expand(ROWS, -1, -1), r"expand\(4, -1, -1\)"),
}


@pytest.mark.parametrize("way", REORDERED)
def test_a_loss_of_rows_in_another_order_is_refused(way):
    f, operation = REORDERED[way]
    with pytest.raises(SketchError, match=rf"the loss sums up .* after {operation}, and head\.\w+ was used before"):
        captured(Model(f), tokens())


def backward_of(loss):
    with Sketcher(model := Model(), dim=128).capture(INDEX):
        loss(model(tokens(7))).backward()


MIXED_LOSSES = {
    "summed up": (lambda out: out.cumsum(0).square().sum(), r"cumsum\(dim=0\)"),
    "among rows": (lambda out: out.softmax(0).square().mean(), r"softmax\(dim=0\)"),
    "similarities": (lambda out: (out.flatten(1) @ out.flatten(1).T).logsumexp(1).sum(), r"matmul\(\)"),
}


@pytest.mark.parametrize("way", MIXED_LOSSES)
def test_a_loss_that_mixes_rows_is_refused(way):
    loss, operation = MIXED_LOSSES[way]
    with pytest.raises(SketchError, match=rf"the loss sums up .* after {operation}, and head\.\w+ was used before"):
        backward_of(loss)


LOSSES = {
    "summed in steps": lambda out: out.log_softmax(-1).sum(0).sum(),
    "time first": lambda out: out.log_softmax(-1).transpose(0, 1).mean(1).sum(),
    "normalized advantages": lambda out: (out.sum((1, 2)) * (RETURNS - RETURNS.mean()) / RETURNS.std()).sum(),
    "weights of other rows": lambda out: (out.sum((1, 2)) * RETURNS.flip(0)).sum(),
    "a ratio": lambda out: ((out - out.detach()).exp() * RETURNS[:, None, None]).sum() / RETURNS.sum(),
}
RETURNS = torch.tensor([1.0, 2.0, 4.0, 8.0])


@pytest.mark.parametrize("way", LOSSES)
def test_a_loss_may_sum_rows_up_and_weigh_them_by_others(way):
    loss, model = LOSSES[way], Model()
    sketcher = Sketcher(model, dim=128)
    with sketcher.capture(INDEX) as block:
        loss(model(tokens(7))).backward()
    model.zero_grad()
    loss(model(tokens(7))).backward()
    whole = sketcher.from_grads()
    assert (block.sketches.sum(0) - whole).norm() <= 1e-5 * whole.norm()


IDS = {
    "transposed": (lambda ids: ids.T, "T"),
    "transposed without grad": (lambda ids: torch.no_grad()(lambda: ids.t().contiguous())(), r"t\(\)"),
    "shuffled": (lambda ids: ids[ORDER], r"x\[key\]"),
    "summed": (lambda ids: ids.cumsum(0) % VOCABULARY, r"cumsum\(dim=0\)"),
    "flipped": (lambda ids: ids.flip(0), r"flip\(0\)"),
    "through numpy": (lambda ids: torch.from_numpy(ids.numpy()[::-1].copy()), r"numpy\(\)"),
    "by vmap": (torch.vmap(lambda ids: ids.flip(0), in_dims=1, out_dims=1), r"torch\.vmap"),
}


@pytest.mark.parametrize("way", IDS)
def test_integers_are_followed(way):
    f, operation = IDS[way]
    with pytest.raises(SketchError, match=rf"after {operation}"):
        captured(Model(ids=f), tokens())


RIGHT = {
    "as many heads as rows": lambda x: (x.view(len(x), -1, 2, 3).transpose(1, 2) * 2).transpose(1, 2).reshape(x.shape),
    "scans over time": lambda x: x.cumsum(1) + x.softmax(1) + x.logcumsumexp(1) + x.cummax(1)[0],
    "time first": lambda x: x.transpose(0, 1).cumsum(0).transpose(0, 1),
    "attention": lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True),
    "products within rows": lambda x: torch.einsum("btd,bsd->bts", x, x).tril() @ x,
    "a causal mean": lambda x: torch.ones(x.shape[1], x.shape[1]).tril() @ x,
    "windows": lambda x: functional.pad(x, (0, 0, 2, 0)).unfold(1, 3, 1).sum(-1),
    "scattered and gathered": lambda x: torch.zeros_like(x).scatter(2, x.argsort(-1), x) + x.gather(1, x.argsort(1)),
    "a buffer filled through a view": changed(lambda y: y.view(-1, WIDTH).mul_(2)),
    "halves written": lambda x: changed(lambda y: y.__setitem__((..., slice(0, None, 2)), x[..., 1::2]))(
        torch.zeros_like(x)
    ),
    "triangular systems": lambda x: torch.linalg.solve_triangular(
        torch.eye(x.shape[1]) + (0.1 * x @ x.mT).tril(-1), x, upper=False
    ),
    "row by row": lambda x: torch.stack([row * 2 for row in x]),
    "in pieces": lambda x: torch.cat([2 * each for each in x.tensor_split([1, 1])]),
    "out and back": lambda x: x[torch.arange(len(x)).flip(0)][torch.arange(len(x)).flip(0)],
}


@pytest.mark.parametrize("way", RIGHT)
@pytest.mark.parametrize("length", [ROWS, 7])
def test_rows_that_stay_apart_are_right(way, length):
    equal(Model(RIGHT[way]), tokens(length))


def test_positions_of_as_many_tokens_as_rows():
    class Positions(Model):
        def forward(self, ids):
            return super().forward(ids) + self.head(self.emb(torch.arange(ids.shape[1])))

    equal(Positions(), tokens())


def test_a_call_that_gives_back_its_operand_hides_nothing():
    """`contiguous()` and `float()` of a kernel's result, and of a buffer as long as the batch has rows."""
    with pytest.raises(SketchError, match=r"after Turned \(an operation"):
        captured(Model(lambda x: Turned.apply(x).contiguous().float()), tokens())

    class Buffered(Model):
        def __init__(self):
            super().__init__()
            self.register_buffer("angles", torch.rand(ROWS))

        def forward(self, ids):
            times = torch.arange(ids.shape[1])[:, None] * self.angles.float()
            return super().forward(ids) * torch.cat([times, times[:, :1]], -1).cos()

    equal(Buffered(), tokens(7))


def test_padding_rows_belong_to_no_problem():
    f = lambda x: torch.cat([x, torch.zeros(1, *x.shape[1:])])  # noqa: E731
    with pytest.raises(SketchError, match=r"lin\.weight is used .* of padding, which belongs to none"):
        captured(Model(f), tokens())
