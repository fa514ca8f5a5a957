"""TRL runs of two processes under DeepSpeed: products and sketches beside its hooks, and the training as without us."""

import pytest
from releases import needs

needs("deepspeed")

from trlranks import two_processes  # noqa: E402

pytestmark = pytest.mark.slow
LONG = pytest.mark.long
FORWARD = {"gradalign": {"alignment": "forward"}}
WITHIN = {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "max_steps": 3}
"""A batch is generated in the middle of an accumulation, when DeepSpeed holds a part of the gradients."""


def configured(stage, **zero):
    """A run by a configuration of DeepSpeed's own, in place of what `accelerate launch` asks for."""
    auto = dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto")
    own = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return {"deepspeed": {**auto, **own, "zero_optimization": {"stage": stage, **zero}}}


def ranked(ended):
    return [entry for entry in ended["log"] if "gradalign/weight" in entry]


@pytest.fixture
def pair(base, scorer, run_id, tmp_path):
    def run(kind, engine, *, name="run", **settings):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return two_processes(base, folder, scorer.url, f"{run_id}-{name}", kind, engine, **settings)

    return run


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        ("zero2", {}),
        ("zero3", {}),
        pytest.param("zero1", {"gradalign": {"alignment": "forward", "aggregation": "mean"}}, marks=LONG),
        # No weight is so small that every process keeps it whole.
        pytest.param("zero3", {**WITHIN, **configured(3, stage3_param_persistence_threshold=0)}, marks=LONG),
    ],
    ids=["zero2", "zero3", "zero1-mean", "zero3-all-cut"],
)
def test_products_are_those_of_whole_weights(pair, engine, settings):
    first, second = pair("witness", engine, **{**FORWARD, **settings})
    assert max(first["apart"], second["apart"]) < 0.02
    assert [entry["gradalign/fallbacks"] for entry in ranked(first)] == [0] * len(ranked(first))
    assert len(ranked(first)) == settings.get("max_steps", 4)


@LONG
@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        ("zero1", {**FORWARD, "bf16": True}),
        ("zero2", {**FORWARD, **WITHIN, "gradient_checkpointing": True}),
        ("zero2", {**FORWARD, **WITHIN, **configured(2, offload_optimizer={"device": "cpu"})}),
        ("zero2", {"gradalign": {"alignment": "capture"}, **WITHIN}),
        ("zero3", {**FORWARD, **WITHIN, "gradient_checkpointing": True}),
        ("zero3", {**FORWARD, **WITHIN, **configured(3, stage3_param_persistence_threshold=0)}),
        ("zero3", {**FORWARD, **configured(3, offload_param={"device": "cpu"}, offload_optimizer={"device": "cpu"})}),
        ("zero3", {"gradalign": {"alignment": "forward", "offload": True}, "lora": True, "num_iterations": 2}),
    ],
    ids=["bf16", "zero2", "zero2-offload", "zero2-capture", "zero3", "zero3-all-cut", "zero3-offload", "zero3-lora"],
)
def test_updates_are_bit_for_bit_what_they_would_be_without_measuring(pair, engine, settings):
    ends = []
    for kind in ("unweighted", "blind"):
        found = pair(kind, engine, name=kind, **settings)
        assert bool(ranked(found[0])) == (kind == "unweighted")
        ends.append([(rank["weights"], rank["moments"]) for rank in found])
    assert ends[0] == ends[1]


@LONG
def test_it_ends_where_ddp_does(pair):
    """With one seed all draw the same tokens, until rounding makes another one of them likelier."""
    plain = ranked(pair("plain", "ddp", name="ddp", **FORWARD)[0])
    for engine in ("fsdp2", "zero1", "zero2", "zero3"):
        ended = ranked(pair("plain", engine, name=engine, **FORWARD)[0])
        for ours, theirs in zip(ended, plain, strict=True):
            assert ours["reward"] == pytest.approx(theirs["reward"], abs=1e-6)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-2, abs=1e-6)
            assert ours["gradalign/weight"] == pytest.approx(theirs["gradalign/weight"], abs=1e-2)
