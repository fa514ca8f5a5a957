"""A direction that lets an earlier gradient decay into it, and one that goes on from a checkpoint."""

import pytest
import torch
from tiny_causal_lms import Batch, exact_products, gradients_of, logprobs_of, tiny

from gradalign import DirectionError
from gradalign.forward import Direction
from gradalign.sketch import Preconditioner

DECAY = 0.7


def take(direction, model, seed, **settings):
    """v of a validation batch; its gradient, and the batch."""
    batch = Batch(seed=seed)
    batch.loss(model).backward()
    gradient = gradients_of(model)
    direction.take(**settings)
    return gradient, batch


def arguments(model, batch):
    return logprobs_of(model), batch, batch.weights, batch.mask


class TestDecay:
    @pytest.mark.parametrize("settings", [{}, {"offload": True}, {"copy": True}], ids=str)
    def test_products_are_with_the_sum_and_add_up_with_what_is_carried(self, settings):
        model = tiny(dtype=torch.float64)
        offload = settings.pop("offload", False)
        direction = Direction(model, target=1e-3, offload=offload)
        first, _ = take(direction, model, 1)
        assert direction.carried == 0
        model.zero_grad()
        fresh, validation = take(direction, model, 2, decay=DECAY, **settings)
        if settings:
            kept = gradients_of(model)
            assert all(torch.equal(kept[name], fresh[name]) for name in fresh)
        model.zero_grad()
        total = {name: DECAY * first[name] + fresh[name] for name in first}
        flat = torch.cat([part.flatten() for part in total.values()])
        assert direction.length == pytest.approx(float(flat.norm()))
        old = torch.cat([part.flatten() for part in first.values()])
        assert direction.carried == pytest.approx(DECAY * float(old @ flat / flat.norm()))
        check = direction.check(*arguments(model, validation))
        assert check.quotient == pytest.approx(1.0, abs=1e-3)
        batch = Batch(seed=3)
        found = direction.products(*arguments(model, batch))
        assert torch.allclose(found, exact_products(model, batch, total), rtol=1e-2, atol=1e-5)

    def test_a_parameter_that_has_no_gradient_any_more_keeps_its_share(self):
        model = tiny(dtype=torch.float64)
        direction = Direction(model, target=1e-3)
        first, _ = take(direction, model, 1)
        Batch(seed=2).loss(model).backward()
        name, parameter = next(iter(model.named_parameters()))
        parameter.grad = None
        fresh = gradients_of(model)
        direction.take(decay=DECAY)
        total = {**{key: DECAY * part for key, part in first.items()}}
        for key, part in fresh.items():
            if key != name:
                total[key] = total[key] + part
        batch = Batch(seed=3)
        found = direction.products(*arguments(model, batch))
        assert torch.allclose(found, exact_products(model, batch, total), rtol=1e-2, atol=1e-5)

    def test_the_first_take_has_nothing_to_carry(self):
        model = tiny()
        direction = Direction(model)
        gradient, _ = take(direction, model, 1, decay=DECAY)
        flat = torch.cat([part.flatten() for part in gradient.values()])
        assert direction.length == pytest.approx(float(flat.norm()), rel=1e-5)
        assert direction.carried == 0

    @pytest.mark.parametrize("decay", [1.0, -0.1, float("nan"), 2.0])
    def test_out_of_range(self, decay):
        model = tiny()
        direction = Direction(model)
        take(direction, model, 1)
        length = direction.length
        Batch(seed=2).loss(model).backward()
        with pytest.raises(DirectionError, match=r"decay is .*; expected a share"):
            direction.take(decay=decay)
        assert direction.length == length
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_not_with_a_preconditioner(self):
        model = tiny()
        ones = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
        direction = Direction(model, preconditioner=Preconditioner(ones, form="validation"))
        Batch(seed=1).loss(model).backward()
        with pytest.raises(DirectionError, match="with a preconditioner only P v is kept"):
            direction.take(decay=0.5)


class TestState:
    @pytest.mark.parametrize("given", [True, False])
    @pytest.mark.parametrize("stale", [True, False])
    def test_products_go_on_to_the_bit(self, given, stale, tmp_path):
        model = tiny()
        direction = Direction(model)
        take(direction, model, 1)
        batch = Batch(seed=2)
        with torch.no_grad():
            base = {"logprobs_at": logprobs_of(model)(batch)} if given else {}
        direction.products(*arguments(model, batch), **base)
        if stale:
            with torch.no_grad():
                next(model.parameters()).add_(1e-4)
                base = {"logprobs_at": logprobs_of(model)(batch)} if given else {}
        torch.save({"model": model.state_dict(), "direction": direction.state_dict()}, tmp_path / "checkpoint")
        wanted = direction.products(*arguments(model, batch), **base)

        saved = torch.load(tmp_path / "checkpoint", weights_only=True)
        other = tiny()
        other.load_state_dict(saved["model"])
        resumed = Direction(other)
        resumed.load_state_dict(saved["direction"])
        assert (resumed.length, resumed.stale) == (direction.length, stale)
        assert torch.equal(resumed.products(*arguments(other, batch), **base), wanted)

    def test_before_the_first_take_there_is_none(self):
        direction = Direction(tiny())
        assert direction.state_dict() == {}
        direction.load_state_dict({})
        with pytest.raises(DirectionError, match="no direction was taken"):
            _ = direction.length

    def test_of_another_model(self):
        model = tiny()
        direction = Direction(model)
        take(direction, model, 1)
        state = direction.state_dict()
        other = Direction(tiny(hidden_size=64))
        with pytest.raises(DirectionError, match="load the state that a rank saved on the same rank"):
            other.load_state_dict(state)
        fewer = {**state, "parts": dict(list(state["parts"].items())[:-1])}
        with pytest.raises(DirectionError, match="the state holds nothing of"):
            direction.load_state_dict(fewer)
        more = {**state, "parts": {**state["parts"], "other.weight@(0,)": torch.ones(1)}}
        with pytest.raises(DirectionError, match="which is no trainable part"):
            direction.load_state_dict(more)
        assert direction.length == pytest.approx(state["figures"]["length"])


class TestVerifying:
    def passes(self, direction, model, batch, base):
        counted = []

        def logprobs(b):
            counted.append(1)
            return logprobs_of(model)(b)

        direction.products(logprobs, batch, batch.weights, batch.mask, logprobs_at=base)
        return len(counted)

    def test_given_log_probs_are_compared_after_every_so_many_takes(self):
        model = tiny()
        direction = Direction(model, verify_every=2, method="one-sided")
        batch = Batch(seed=2)
        with torch.no_grad():
            base = logprobs_of(model)(batch)
        take(direction, model, 1)
        self.passes(direction, model, batch, base)  # the step is found here
        found = []
        for seed in (1, 1, 1):
            take(direction, model, seed)
            found.append(self.passes(direction, model, batch, base))
        assert found == [1, 2, 1]

    def test_none(self):
        with pytest.raises(DirectionError, match="verify_every is 0"):
            Direction(tiny(), verify_every=0)
