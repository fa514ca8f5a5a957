"""TRL runs aligned by forward passes: what is measured is TRL's own loss, and the training is not touched by it."""

import logging

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trlkit import Blind, Unweighted, Witness, apart, graded, make_trainer
from trlsketches import scaled

from gradalign import Client, GradAlignError
from gradalign_trainer.adapters.trl import GradAlignGRPOTrainer

pytestmark = [
    # What TRL, transformers and accelerate warn of is theirs.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]


@pytest.fixture
def play(base, scorer, tmp_path, run_id):
    """Makes a trainer on the session's scorer, aligned by forward passes: `play("name", **settings of make_trainer)`."""

    def make(name="run", *, url=scorer.url, run_id=run_id, gradalign=None, **settings):
        curriculum = {"alignment": "forward", **(gradalign or {})}
        return make_trainer(base, tmp_path / name, url, run_id, gradalign=curriculum, **settings)

    return make


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


LORA = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])}


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.8, "per_device_train_batch_size": 24},
        {"num_iterations": 2},
        {"steps_per_generation": 2, "per_device_train_batch_size": 8},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}, **LORA},
        {"mask_truncated_completions": True, **LORA},
        {"gradalign": {"aggregation": "mean", "offload": True}},
    ],
    ids=["whole", "iterations", "steps-per-generation", "checkpointing", "reentrant", "lora", "mean"],
)
def test_products_are_those_of_the_loss_that_trl_takes(play, settings):
    trainer = play(kind=Witness, max_steps=2, **settings)
    trainer.train()
    assert logged(trainer, "gradalign/fallbacks")[-1] == 0
    assert abs(logged(trainer, "gradalign/quotient")[-1] - 1) < 0.01
    assert apart(trainer.compared) < 0.02


@pytest.mark.parametrize("iterations", [1, 2])
def test_in_16_bits_products_are_near_enough(play, iterations):
    trainer = play(kind=Witness, max_steps=2, bf16=True, num_iterations=iterations)
    trainer.train()
    assert logged(trainer, "gradalign/fallbacks")[-1] == 0
    assert logged(trainer, "gradalign/fidelity")[-1] > 0.98
    assert apart(trainer.compared) < 0.2


def test_dropout_is_drawn_alike_in_the_backward_and_the_passes(play):
    dropout = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    trainer = play(peft_config=dropout, num_iterations=2, gradalign={"refresh_every": 1})
    trainer.train()
    assert logged(trainer, "gradalign/fallbacks")[-1] == 0
    # Other draws would be another loss: half of what each adapter sees is gone.
    assert all(abs(quotient - 1) < 0.1 for quotient in logged(trainer, "gradalign/quotient"))


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "max_steps": 3},
        {"num_iterations": 2, "gradient_checkpointing": True},
        {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3)},
    ],
    ids=["inside-an-accumulation", "iterations", "dropout"],
)
def test_the_next_update_is_bit_for_bit_what_it_would_be_without_measuring(play, run_id, settings):
    ends = []
    for kind in (Unweighted, Blind):
        trainer = play(kind.__name__, kind=kind, run_id=f"{run_id}-{kind.__name__}", **settings)
        trainer.train()
        moments = trainer.optimizer.state_dict()["state"].values()
        ends.append([*trainer.model.state_dict().values(), *(m[name] for m in moments for name in sorted(m))])
        assert ("gradalign/weight" in trainer.state.log_history[0]) == (kind is Unweighted)
    assert len(ends[0]) == len(ends[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_a_model_that_capture_refuses_is_aligned(play, base, run_id, caplog):
    trainer = play(kind=Witness, model=scaled(AutoModelForCausalLM.from_pretrained(base)), max_steps=2)
    trainer.train()
    assert logged(trainer, "gradalign/fallbacks")[-1] == 0
    assert apart(trainer.compared) < 0.02
    caplog.set_level(logging.WARNING, "gradalign_trainer")
    refused = scaled(AutoModelForCausalLM.from_pretrained(base))
    play("capture", model=refused, max_steps=1, run_id=f"{run_id}-2", gradalign={"alignment": "capture"}).train()
    assert "This batch takes one backward a group, which is slower" in caplog.text


def test_each_rollout_may_have_a_weight_of_its_own(play):
    seen = []

    class Kept(GradAlignGRPOTrainer):
        def _score(self, ids, output, *, ready):
            before = output["advantages"].clone()
            super()._score(ids, output, ready=ready)
            seen.append((output["advantages"] / before).view(-1, 4))

    play(kind=Kept, gradalign={"rollout_weights": True, "strategy": "shrunken"}).train()
    factors = torch.cat(seen)
    assert factors.min() >= 0
    assert factors.max() <= 1
    assert (factors.max(1).values - factors.min(1).values).max() > 0.1


class Wrong(GradAlignGRPOTrainer):
    """Its log-probs without a graph are not those of its loss."""

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        found, *rest = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return found if torch.is_grad_enabled() else 3 * found, *rest


class Broken(GradAlignGRPOTrainer):
    """Its log-probs fail without a graph, as where memory is out."""

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            raise RuntimeError("out of memory")
        return super()._get_per_token_logps_and_entropies(*args, **kwargs)


@pytest.mark.parametrize("kind", [Wrong, Broken])
def test_products_that_do_not_hold_their_check_weigh_nothing(play, scorer, run_id, caplog, kind):
    caplog.set_level(logging.WARNING, "gradalign_trainer")
    trainer = play(kind=kind)
    trainer.train()
    assert logged(trainer, "gradalign/fallbacks_unmeasured")[-1] == 4
    # At each refresh that is due, not at every batch: it costs rollouts.
    assert caplog.text.count("No products can be taken with this validation gradient") == 2
    with Client(scorer.url, run_id=run_id) as client:
        assert run_id not in {run.run_id for run in client.runs()}
    with pytest.raises(GradAlignError, match=r"no validation gradient could be measured .*fail_open is False"):
        play("stops", kind=kind, gradalign={"fail_open": False}).train()


def test_without_a_signal_the_gradient_before_stays(play, scorer, run_id):
    calls = []

    def reward(completions, part, **columns):
        calls.append(part[0])
        if part[0] == "validation" and calls.count("pool"):
            return [1.0] * len(completions)
        return graded(completions, part=part, **columns)

    trainer = play(reward_funcs=reward)
    trainer.train()
    assert logged(trainer, "gradalign/fallbacks")[-1] == 0
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().validation_version == 1


def test_a_run_of_sketches_goes_on_as_one(play, scorer, run_id, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    play(**settings, gradalign={"alignment": "capture"}).train()
    resume = {"resume_from_checkpoint": str(tmp_path / "run/checkpoint-2")}
    with pytest.raises(
        GradAlignError, match=r"holds sketches .* sends products.*GradAlignConfig\(alignment='capture'\)"
    ):
        play(**settings).train(**resume)
    play(**settings, gradalign={"alignment": "auto"}).train(**resume)
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().kind == "sketches"


def test_a_run_of_products_goes_on_as_one(play, scorer, run_id, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    play(**settings).train()
    resume = {"resume_from_checkpoint": str(tmp_path / "run/checkpoint-2")}
    with pytest.raises(GradAlignError, match=r"holds products .* sends sketches.*alignment='forward'.*a new run_id"):
        play(**settings, gradalign={"alignment": "capture"}).train(**resume)
    play(**settings, gradalign={"alignment": "auto"}).train(**resume)
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().kind == "products"


@pytest.mark.parametrize(
    ("settings", "kind"),
    [({}, "sketches"), ({"strategy": "diverse"}, "sketches"), ({"strategy": "shrunken"}, "products")],
)
def test_a_new_run_is_of_the_kind_that_its_strategy_takes(play, scorer, run_id, settings, kind):
    play(max_steps=1, gradalign={"alignment": "auto", **settings}).train()
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().kind == kind
