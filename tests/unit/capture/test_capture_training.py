"""`Sketcher.capture()` amid what training adds: checkpoints, adapters, padding, micro-batches, and what `.grad` holds."""

import copy

import pytest
import torch
from capturekit import BATCHES, LENGTH, Batch, build, check, gradients

from gradalign.sketch import Sketcher

pytestmark = pytest.mark.usefixtures("_wide_casts")


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad", "ignore:`.*gradient_checkpointing")
def test_gradient_checkpointing(reentrant):
    model = build("qwen2").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    check(model, BATCHES["ragged, out of order"])


def test_a_compiled_model_runs_eagerly_in_the_block():
    check(torch.compile(build("qwen2"), backend="eager"), BATCHES["ragged, out of order"])


def test_frozen_parameters_are_left_out():
    model = build("qwen2")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name or "mlp" in name or "bias" in name)
    check(model, BATCHES["ragged, out of order"])


@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing")
def test_lora():
    peft = pytest.importorskip("peft", reason="comes with the extra trl")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], lora_dropout=0.0)
    model = peft.get_peft_model(build("qwen2"), config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    captured = check(model, BATCHES["ragged, out of order"])
    assert captured.sketches.abs().sum() > 0


def test_logits_of_the_last_positions_only():
    class Last(Batch):
        def loss(self, model, only=None):
            logits = model(self.ids, logits_to_keep=4).logits
            weights = self.weights[:, -4:] * (True if only is None else self.problem[:, -4:] == only)
            return (logits.square().sum(-1) * weights).sum()

    for name in ("ragged, out of order", "one problem"):
        check(build("qwen2"), Last(BATCHES[name].index))


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_rows_padded_on_the_left(kind):
    class Padded(Batch):
        def log_probs(self, model):
            mask = (torch.arange(LENGTH) >= torch.tensor([0, 3, 5, 0, 1, 7, 2])[:, None]).long()
            ids, places = self.ids * mask, (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=places).logits[:, :-1]
            return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0] * mask[:, :-1]

    check(build(kind), Padded(BATCHES["ragged, out of order"].index))


def test_zero_advantage_gives_a_zero_row():
    batch = Batch(torch.tensor([0, 0, 1, 1, 2, 2, 2]))
    batch.weights[2:4] = 0
    assert check(build("qwen2"), batch).sketches[1].abs().max() == 0


def test_grad_can_be_left_alone():
    model, batch = build("gemma"), BATCHES["ragged, out of order"]
    sketcher = Sketcher(model, dim=64, dtype=torch.float64)
    with sketcher.capture(batch.index) as kept:
        batch.loss(model).backward()
    model.zero_grad()
    with sketcher.capture(batch.index, keep_grad=False) as captured:
        batch.loss(model).backward()
    assert gradients(model) == {}
    torch.testing.assert_close(captured.sketches, kept.sketches, rtol=0, atol=1e-12)


def test_grad_is_added_to():
    model, batch = build("qwen2"), BATCHES["one problem"]
    batch.loss(model).backward()
    once = gradients(model)
    with Sketcher(model, dim=64).capture(batch.index) as captured:
        batch.loss(model).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 2 * once[name])
    assert captured.sketches.dtype == torch.float32


def test_several_backwards_in_one_block_add():
    model, batch = build("qwen2"), BATCHES["ragged, out of order"]
    sketcher = Sketcher(model, dim=64, dtype=torch.float64)
    with sketcher.capture(batch.index, problems=5) as captured:
        for only in range(batch.problems):
            batch.loss(model, only).backward()
    with sketcher.capture(batch.index) as whole:
        batch.loss(model).backward()
    torch.testing.assert_close(captured.sketches[:3], whole.sketches, rtol=0, atol=1e-12)
    assert captured.sketches[3:].abs().max() == 0


def test_micro_batches_add():
    model, batch = build("qwen2"), BATCHES["ragged, out of order"]
    sketcher = Sketcher(model, dim=64, dtype=torch.float64)
    with sketcher.capture(batch.index) as whole:
        batch.loss(model).backward()
    captured = None
    for part in (slice(0, 3), slice(3, 4), slice(4, None)):
        micro = copy.copy(batch)
        micro.index, micro.ids, micro.weights = batch.index[part], batch.ids[part], batch.weights[part]
        micro.problem = batch.problem[part]
        with sketcher.capture(micro.index, problems=3, onto=captured) as captured:
            micro.loss(model).backward()
    torch.testing.assert_close(captured.sketches, whole.sketches, rtol=0, atol=1e-12)
