"""The laws of capture: rows add to the whole, split over batches, and do not care where in a batch a row stands."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradalign.sketch import Sketcher

quick = settings(max_examples=40, deadline=None)


class Model(nn.Module):
    """A look-up, two uses of one layer, a norm, and a tied head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer, self.norm = nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4)

    def forward(self, ids):
        x = self.norm(self.layer(torch.tanh(self.layer(self.embed(ids)))))
        return nn.functional.linear(x, self.embed.weight)


MODEL = Model().double()
SKETCHER = Sketcher(MODEL, dim=31, dtype=torch.float64)
INDEXES = st.lists(st.integers(-1, 3), min_size=1, max_size=7).filter(lambda index: max(index) >= 0)


def batch(index, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 7, (len(index), 3), generator=generator)
    weights = torch.randn(len(index), 3, 7, generator=generator, dtype=torch.float64)
    return torch.tensor(index), ids, weights


def capture(index, ids, weights, **options):
    with SKETCHER.capture(index, problems=4, **options) as captured:
        (MODEL(ids) * weights).sum().backward()
    return captured


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@quick
@given(INDEXES, st.integers(0, 2**30))
def test_rows_add_to_the_gradient_of_all_problems(index, seed):
    index, ids, weights = batch(index, seed)
    MODEL.zero_grad()
    total = capture(index, ids, weights * (index >= 0)[:, None, None]).sketches.sum(0)
    same(total, SKETCHER.from_grads())


@quick
@given(INDEXES, st.integers(0, 2**30), st.data())
def test_the_place_of_a_row_does_not_matter(index, seed, data):
    order = torch.tensor(data.draw(st.permutations(range(len(index)))))
    index, ids, weights = batch(index, seed)
    MODEL.zero_grad()
    (MODEL(ids) * weights).sum().backward()
    against = SKETCHER.gradients()
    one = capture(index, ids, weights, against=against)
    other = capture(index[order], ids[order], weights[order], against=against)
    for name in ("sketches", "dots", "norms"):
        same(getattr(one, name), getattr(other, name))


@quick
@given(INDEXES, st.integers(0, 2**30), st.data())
def test_micro_batches_add(index, seed, data):
    cut = data.draw(st.integers(0, len(index)))
    index, ids, weights = batch(index, seed)
    whole = capture(index, ids, weights).sketches
    captured = None
    for part in (slice(cut), slice(cut, None)):
        if len(index[part]) and int(index[part].max()) >= 0:
            captured = capture(index[part], ids[part], weights[part], onto=captured)
    same(captured.sketches, whole)


@quick
@given(INDEXES, st.integers(0, 2**30), st.floats(-4, 4))
def test_linear_in_the_loss(index, seed, factor):
    index, ids, weights = batch(index, seed)
    same(capture(index, ids, factor * weights).sketches, factor * capture(index, ids, weights).sketches)
