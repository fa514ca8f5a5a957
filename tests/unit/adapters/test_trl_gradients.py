"""The meter of a batch's groups: in one backward where capture can, one by one where not, and `.grad` left as it was."""

import contextlib
import logging
import warnings
from types import SimpleNamespace

import pytest
import torch
from releases import needs
from torch import nn

from gradalign.sketch import Sketcher

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what TRL's import warns of is TRL's
    needs("trl")
    from gradalign_trainer.adapters.trl.measuring.aside import gradients_aside
    from gradalign_trainer.adapters.trl.measuring.capture import GroupMeter

GROUPS = torch.tensor([0, 0, 1, 1, 2, 2])


class Policy(nn.Module):
    """Logits of the tokens alone, through a head that capture takes or does not."""

    def __init__(self, *, einsum=False):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head, self.einsum = nn.Embedding(11, 6), nn.Parameter(torch.randn(11, 6)), einsum

    def forward(self, input_ids, attention_mask, use_cache):
        x = self.tokens(input_ids).tanh() * attention_mask[..., None]
        return SimpleNamespace(logits=torch.einsum("btd,vd->btv", x, self.head) if self.einsum else x @ self.head.T)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    prompts, completions = (torch.randint(11, (6, length), generator=generator) for length in (3, 4))
    lived = (torch.arange(4) < torch.tensor([[4], [2], [1], [3], [3], [2]])).long()
    advantages = torch.tensor([0.5, -0.5, 0.0, 0.0, 0.25, -0.25])
    return {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": completions,
        "completion_mask": lived, "advantages": advantages,
    }  # fmt: skip


def meter(model, rows):
    def same(value):
        return value

    alone = SimpleNamespace(unwrap_model=same, reduce=same, autocast=contextlib.nullcontext, num_processes=1)
    args = SimpleNamespace(per_device_train_batch_size=rows)
    trainer = SimpleNamespace(model=model, accelerator=alone, args=args, temperature=0.7, is_fsdp_enabled=False)
    return GroupMeter(trainer, Sketcher(model, dim=64))


def by_hand(model, batch):
    """Sketches of one backward a group; no padding beyond what the batch has."""
    found, sketcher = [], Sketcher(model, dim=64)
    for group in range(3):
        model.zero_grad()
        total = torch.zeros(())
        for row in (group == GROUPS).nonzero()[:, 0].tolist():
            ids = torch.cat([batch["prompt_ids"][row], batch["completion_ids"][row]])[None]
            logp = (model(ids, torch.ones_like(ids), False).logits[0, 2:-1] / 0.7).log_softmax(-1)
            said = logp.gather(1, batch["completion_ids"][row][:, None])[:, 0]
            total = total - batch["advantages"][row] * (said * batch["completion_mask"][row]).sum()
        total.backward()
        found.append(sketcher.from_grads())
    model.zero_grad()
    return torch.stack(found)


@pytest.mark.parametrize("rows", [6, 1])
@pytest.mark.parametrize("einsum", [False, True])
def test_it_is_each_group_s_own_gradient_whether_captured_or_not(batch, rows, einsum, caplog):
    model = Policy(einsum=einsum)
    want = by_hand(model, batch)
    kept = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = kept[name].clone()
    own = meter(model, rows)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(own.measure(batch, GROUPS, 3), want, rtol=1e-4, atol=1e-6)
    assert caplog.text.count("takes one backward a group, which is slower: head is used by") == int(einsum)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, kept[name])
    assert not want[1].any()


def test_a_group_that_is_not_finite_stops_nothing_and_is_tried_again(batch, caplog):
    model = Policy()
    want, own = by_hand(model, batch), meter(model, 6)
    good = batch["advantages"].clone()
    batch["advantages"] = torch.where(GROUPS == 0, torch.inf, good)
    with caplog.at_level(logging.WARNING):
        found = own.measure(batch, GROUPS, 3)
    assert "A group counts as without a signal: the gradient of" in caplog.text
    assert not found[0].any()
    torch.testing.assert_close(found[2], want[2], rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())
    caplog.clear()
    batch["advantages"] = good
    torch.testing.assert_close(own.measure(batch, GROUPS, 3), want, rtol=1e-4, atol=1e-6)
    assert caplog.text == ""  # by capture again


def test_a_batch_without_any_advantage_has_no_gradient(batch):
    batch["advantages"] = torch.zeros(6)
    assert not meter(Policy(), 6).measure(batch, GROUPS, 3).any()


@pytest.mark.parametrize("einsum", [False, True])
def test_hooks_that_wait_for_gradients_hear_nothing_of_ours(batch, einsum):
    """As ZeRO's, which reduce what they hear of, and count it."""
    model, heard = Policy(einsum=einsum), []
    for name, parameter in model.named_parameters():
        for number in range(2):
            parameter.register_post_accumulate_grad_hook(lambda _, said=(name, number): heard.append(said))
    assert meter(model, 6).measure(batch, GROUPS, 3).any()
    assert heard == []
    model.head.sum().backward()
    assert heard == [("head", 0), ("head", 1)]


def test_what_is_heard_instead_may_take_the_gradient():
    weight, heard = nn.Parameter(torch.ones(2)), []
    weight.register_post_accumulate_grad_hook(lambda _: heard.append("theirs"))
    weight.grad = kept = torch.full((2,), 7.0)

    def take(parameter):
        heard.append(parameter.grad.tolist())
        parameter.grad = None

    with gradients_aside([weight], heard=take):
        (3 * weight).sum().backward()
        (4 * weight).sum().backward()
    assert heard == [[3.0, 3.0], [4.0, 4.0]]
    assert weight.grad is kept
    weight.sum().backward()
    assert heard[2:] == ["theirs"]
