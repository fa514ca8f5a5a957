"""By what a TRL run is aligned: what follows from its settings and its model, and what is refused; no training."""

import warnings
from types import SimpleNamespace

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what TRL's import warns of is TRL's
    from datasets import Dataset

    from gradalign_trainer.adapters.trl import GradAlignConfig
    from gradalign_trainer.adapters.trl.alignment import alignment_of
    from gradalign_trainer.adapters.trl.setups import check_supported

from gradalign import GradAlignError


def config(**settings):
    rows = Dataset.from_dict({"prompt": ["a"]})
    return GradAlignConfig(scorer_url="http://s", run_id="a", validation_dataset=rows, **settings)


@pytest.mark.parametrize("setting", [{"strategy": "diverse"}, {"strategy": "norm"}, {"aggregation": "normalized"}])
def test_what_needs_sketches_says_how_to_get_them(setting):
    assert config(**setting).alignment == "auto"
    with pytest.raises(GradAlignError, match=r'needs the gradients of the candidates .* Take alignment="capture"'):
        config(alignment="forward", **setting)
    with pytest.raises(
        GradAlignError, match=r"rollout_weights = True needs products of single rollouts, and .* sketches"
    ):
        config(rollout_weights=True, **setting)


@pytest.mark.parametrize("setting", [{"strategy": "shrunken"}, {"rollout_weights": True}])
def test_what_needs_products_says_how_to_get_them(setting):
    assert config(alignment="forward", **setting).needs_products
    with pytest.raises(GradAlignError, match=r'needs products of single rollouts, .*alignment="forward" instead'):
        config(alignment="capture", **setting)


FACTS = {
    "is_fsdp_enabled": False, "is_deepspeed_enabled": False, "_is_vlm": False, "num_iterations": 1,
    "accelerator": SimpleNamespace(is_fsdp2=False, parallelism_config=None),
    "args": SimpleNamespace(steps_per_generation=2, gradient_accumulation_steps=2),
}  # fmt: skip
FSDP2 = {"is_fsdp_enabled": True, "accelerator": SimpleNamespace(is_fsdp2=True, parallelism_config=None)}
UNALIGNED = {"args": SimpleNamespace(steps_per_generation=1, gradient_accumulation_steps=2)}


def zero(stage, more=None, **settings):
    """A model that DeepSpeed is to hold, by a configuration with these settings beside."""
    found = {"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}, **settings}, **(more or {})}
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config=found)
    state = SimpleNamespace(deepspeed_plugin=plugin)
    return {"is_deepspeed_enabled": True, "accelerator": SimpleNamespace(parallelism_config=None, state=state)}


def meshed(**sizes):
    return {"accelerator": SimpleNamespace(is_fsdp2=False, parallelism_config=SimpleNamespace(**sizes))}


@pytest.mark.parametrize(
    ("settings", "facts", "alignment"),
    [
        ({}, {}, None),
        ({}, FSDP2, "forward"),
        ({}, {"_is_vlm": True}, "forward"),
        ({"strategy": "shrunken"}, {}, "forward"),
        ({"strategy": "learnalign"}, {}, "capture"),
        ({"alignment": "capture"}, {}, "capture"),
        ({"alignment": "capture"}, FSDP2, "capture"),
        ({"strategy": "diverse"}, FSDP2, "capture"),
        ({}, zero(2), None),
        ({"alignment": "capture"}, zero(2), "capture"),
        ({}, zero(3, offload_param={"device": "cpu"}, zero_quantized_gradients=True), "forward"),
        ({}, meshed(dp_replicate_size=2, dp_shard_size=2, tp_size=1, cp_size=1, sp_size=1), None),
    ],
)
def test_the_alignment_follows_from_the_strategy_and_the_model(settings, facts, alignment):
    trainer = SimpleNamespace(**{**FACTS, **facts})
    assert alignment_of(config(**settings), trainer) == alignment
    check_supported(config(**settings), trainer, alignment)


@pytest.mark.parametrize(
    ("settings", "facts", "words"),
    [
        ({"alignment": "capture"}, zero(3), 'ZeRO-3, and sketches need whole parameters: take alignment="forward"'),
        (
            {},
            zero(3, offload_param={"device": "nvme"}),
            "offload_param.device keeps .* Set it to cpu or none, or .*FSDP2",
        ),
        ({}, zero(3, zero_hpz_partition_size=8), "zero_hpz_partition_size keeps .* Set it to 1"),
        ({}, zero(3, mics_shard_size=4), "mics_shard_size keeps .* Set it to -1"),
        ({}, zero(3, zero_quantized_weights=True), "zero_quantized_weights keeps .* Set it to false"),
        ({}, zero(2, zenflow={"topk_ratio": 0.1}), "zenflow keeps .* Set it to null"),
        ({}, zero(3, {"compile": {"deepcompile": True}}), "compile.deepcompile keeps .* Set it to false"),
        ({}, zero(1, {"tensor_parallel": {"autotp_size": 2}}), "autotp_size keeps .* Set it to 0"),
        ({}, meshed(tp_size=2), "tp_size = 2: several .* Leave tp_size at 1"),
        ({}, meshed(tp_size=1, cp_size=4), "cp_size = 4: several .* Leave cp_size at 1"),
        ({}, {"is_fsdp_enabled": True}, "sharded by FSDP1.* Take FSDP2"),
        ({"strategy": "diverse"}, zero(3), r"with a strategy .* \(strategy = 'diverse' does not\)"),
        ({"alignment": "capture"}, {"_is_vlm": True}, 'of text only: take alignment="forward"'),
        ({}, {**FSDP2, **UNALIGNED}, "every 1 micro-batches .* Make steps_per_generation a multiple"),
    ],
)
def test_a_model_that_cannot_be_measured_is_refused_with_what_to_do(settings, facts, words):
    trainer = SimpleNamespace(**{**FACTS, **facts})
    with pytest.raises(GradAlignError, match=words):
        check_supported(config(**settings), trainer, alignment_of(config(**settings), trainer))
