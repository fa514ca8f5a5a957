"""The law of rows: whatever a model does to the rows of a batch, capture equals one backward a problem, or refuses."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from gradalign import SketchError
from gradalign.sketch import Sketcher

ROWS, WIDTH, VOCABULARY = 4, 6, 11
INDEX = torch.tensor([0, 1, 1, 2])
MIXER = torch.randn(ROWS, ROWS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def into(x):
    """Rows written into a buffer through a view of it."""
    out = torch.zeros_like(x)
    out.view(-1, WIDTH).index_add_(0, torch.arange(x.shape[0] * x.shape[1]), x.reshape(-1, WIDTH))
    return out


def accumulated(x):
    """A copy that is changed in place."""
    out = x.clone()
    out[1:] += 0.5 * x[:-1]
    return out


ROW_WISE = {
    "softmax over features": lambda x: x.softmax(-1),
    "cumsum over time": lambda x: x.cumsum(1),
    "cumsum over time, time first": lambda x: x.transpose(0, 1).cumsum(0).transpose(0, 1),
    "normalized over features": lambda x: functional.normalize(x, dim=-1) + functional.layer_norm(x, (WIDTH,)),
    "attention": lambda x: functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]).squeeze(1),
    "attention by hand": lambda x: torch.einsum("bts,bsd->btd", (x @ x.mT).softmax(-1), x),
    "heads": lambda x: (x.view(ROWS, -1, 2, 3).transpose(1, 2) * 2).transpose(1, 2).reshape(x.shape),
    "convolution over time": lambda x: (
        functional.conv1d(x.mT, torch.ones(WIDTH, 1, 3).to(x), padding=1, groups=WIDTH).mT
    ),
    "shifted in time": lambda x: functional.pad(x, (0, 0, 1, 0))[:, :-1],
    "folded and unfolded": lambda x: x.flatten(0, 1).tanh().view(x.shape),
    "through a view": into,
    "minus the mean over time": lambda x: x - x.mean(1, keepdim=True),
    "sorted over time": lambda x: x.sort(1).values,
    "out and back": lambda x: x[[2, 0, 3, 1]].sin()[[1, 3, 0, 2]],
    "joined in time": lambda x: torch.cat([x[:, :1], x[:, 1:]], 1),
    "in pieces": lambda x: torch.cat([piece.sin() for piece in x.split([1, 0, ROWS - 1])]),
    "row by row": lambda x: torch.stack([row.exp() for row in x.unbind(0)]),
}
MIXING = {
    "cumsum": lambda x: x.cumsum(0),
    "softmax": lambda x: x.softmax(0),
    "time for rows": lambda x: x.movedim(0, 1),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "shuffled": lambda x: x[[2, 0, 3, 1]],
    "minus the mean": lambda x: x - x.mean(0),
    "batch norm": lambda x: functional.batch_norm(x.mT, None, None, training=True).mT,
    "a product over rows": lambda x: torch.einsum("ab,btd->atd", MIXER, x),
    "another order added": lambda x: x + 0.5 * x.flip(0),
    "chosen of two orders": lambda x: torch.where(x > 0, x, x.roll(1, 0)),
    "attention over rows": lambda x: functional.scaled_dot_product_attention(*[x.transpose(0, 1)] * 3).transpose(0, 1),
    "changed in place": accumulated,
    "folded wrongly": lambda x: x.transpose(0, 1).reshape(x.shape),
    "pieces swapped": lambda x: torch.cat(x.split([1, ROWS - 1])[::-1]),
    "pieces added": lambda x: torch.cat([sum(x.chunk(2)), x.chunk(2)[1]]),
    "sorted": lambda x: x.sort(0).values,
    "by the first row": lambda x: x * x[:1],
    "similarities": lambda x: torch.cdist(x.flatten(1), x.flatten(1))[:, :1, None] * x,
    "Fourier": lambda x: torch.fft.fft(x, dim=0).real,
    "dispatch": lambda x: (
        torch.einsum("sec,sm->ecm", torch.einsum("stm,e->sem", x, MIXER[0]).softmax(-1), x.mean(1)).mean((1, 2))[
            :, None, None
        ]
        * x
    ),
}
IDS = {
    "as they are": lambda ids: ids,
    "next token": lambda ids: (ids + 1) % VOCABULARY,
    "shifted": lambda ids: ids.roll(1, 1),
    "transposed": lambda ids: ids.T.reshape(ids.shape),
    "flipped": lambda ids: ids.flip(0),
    "by the row before": lambda ids: (ids + ids.roll(1, 0)) % VOCABULARY,
    "summed over rows": lambda ids: ids.cumsum(0) % VOCABULARY,
    "through numpy": lambda ids: torch.from_numpy(ids.numpy()[::-1].copy()),
}


class Model(nn.Module):
    """A look-up, a layer after each step, and a head."""

    def __init__(self, ids, steps):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer, self.head = (
            nn.Embedding(VOCABULARY, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 5),
        )
        self.ids, self.steps = ids, steps

    def forward(self, ids):
        x = self.embed(self.ids(ids))
        for step in self.steps:
            x = torch.tanh(self.layer(step(x)))
        return self.head(x)


def losses(model, ids):
    return model(ids).square().flatten(1).sum(1)


def capture(ids, steps, length):
    """The captured sketches (None where refused) and those of one backward a problem."""
    model = Model(ids, steps).double()
    tokens = torch.randint(0, VOCABULARY, (ROWS, length), generator=torch.Generator().manual_seed(1))
    sketcher = Sketcher(model, dim=256, dtype=torch.float64)
    want = []
    for problem in range(3):
        model.zero_grad()
        losses(model, tokens)[problem == INDEX].sum().backward()
        want.append(sketcher.from_grads())
    try:
        with sketcher.capture(INDEX) as captured:
            losses(model, tokens).sum().backward()
    except SketchError:
        return None, torch.stack(want)
    return captured.sketches, torch.stack(want)


STEPS = st.sampled_from([*ROW_WISE, *MIXING])


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(IDS)), st.lists(STEPS, max_size=4), st.sampled_from([ROWS, 7]))
def test_equal_to_one_backward_a_problem_or_refused(ids, names, length):
    if length != ROWS:
        names = [n for n in names if n not in ("time for rows", "dispatch")]
    found, want = capture(IDS[ids], [(ROW_WISE | MIXING)[n] for n in names], length)
    if found is not None:
        torch.testing.assert_close(found, want, rtol=0, atol=1e-9 * float(want.norm()))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["as they are", "next token", "shifted"]), st.lists(st.sampled_from(list(ROW_WISE)), max_size=4))
def test_rows_that_stay_apart_are_not_refused(ids, names):
    found, want = capture(IDS[ids], [ROW_WISE[n] for n in names], 7)
    assert found is not None
    torch.testing.assert_close(found, want, rtol=0, atol=1e-9 * float(want.norm()))
