"""Hooks on parameters, as engines that reduce gradients while the backward runs set them (ZeRO-1 and 2, DDP)."""

import copy

import pytest
import torch
from torch import nn

from gradalign import SketchError
from gradalign.sketch import Sketcher

INDEX = torch.tensor([0, 1, 1])


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3, bias=False))


IDS = torch.arange(12).reshape(3, 4) % 11


class Engine:
    """Takes each gradient out of `.grad` as soon as it is there, and crashes where there is none."""

    def __init__(self, model):
        self.taken = {}
        for name, parameter in model.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: self.take(name, p))

    def take(self, name, parameter):
        with torch.enable_grad():  # as torch and engines find what accumulates a gradient
            assert parameter.view_as(parameter).grad_fn.next_functions[0][0] is not None
        self.taken[name] = self.taken.get(name, 0) + parameter.grad.clone()
        parameter.grad = None


def test_an_engine_is_not_called_where_grad_is_left_alone():
    model, engine = (model := build()), Engine(model)
    before = copy.deepcopy(model)
    with Sketcher(model, dim=64).capture(INDEX, keep_grad=False) as captured:
        model(IDS).square().sum().backward()
    with Sketcher(before, dim=64).capture(INDEX) as wanted:
        before(IDS).square().sum().backward()
    assert torch.equal(captured.sketches, wanted.sketches)
    assert not engine.taken


def test_an_engine_gets_what_it_would_have_got():
    model, engine = (model := build()), Engine(model)
    plain = build()
    with Sketcher(model, dim=64).capture(INDEX):
        model(IDS).square().sum().backward()
    plain(IDS).square().sum().backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(engine.taken[name], parameter.grad)


def test_a_view_of_a_parameter_hides_no_use():
    layer = nn.Linear(6, 3)
    for keep in (False, True):
        with (
            pytest.raises(SketchError, match="weight got a gradient from an operation that capture did not see"),
            Sketcher(layer, dim=16).capture(INDEX, keep_grad=keep),
        ):
            nn.functional.linear(torch.ones(3, 6), layer.weight.view_as(layer.weight), layer.bias).sum().backward()


@pytest.mark.parametrize("keep", [False, True])
def test_hooks_of_gradient_accumulators(keep):
    """What engines hung hooks on before torch had those above: each gets its gradient, or is not called."""
    model, called = build(), []
    nodes = [p.expand_as(p).grad_fn.next_functions[0][0] for p in model.parameters()]
    for parameter, node in zip(model.parameters(), nodes, strict=True):
        node.register_hook(lambda *_, p=parameter: called.append(p.grad.norm()))
    with Sketcher(model, dim=64).capture(INDEX, keep_grad=keep):
        model(IDS).square().sum().backward()
    assert len(called) == (len(nodes) if keep else 0)
