"""TRL runs of two processes: DDP and FSDP2, processes without a signal, and processes that were given other things."""

import pytest
from releases import needs
from trlranks import started, two_processes

from gradalign import Client

pytestmark = pytest.mark.slow
LONG = pytest.mark.long


@pytest.fixture
def pair(base, scorer, run_id, tmp_path):
    """Runs two processes, every batch of which is scored."""

    def run(kind, engine, name="run", **settings):
        (tmp_path / name).mkdir()
        ended = two_processes(base, tmp_path / name, scorer.url, f"{run_id}-{name}", kind, engine, **settings)
        entries = [entry for entry in ended[0]["log"] if "gradalign/weight" in entry]
        assert len(entries) == (0 if kind == "blind" else 4)
        assert all(entry["reward"] <= 1 and entry["gradalign/fallbacks"] == 0 for entry in entries)
        return ended

    return run


@LONG
@pytest.mark.parametrize(("kind", "alignment"), [("witness", "forward"), ("plain", "capture")])
def test_two_processes_share_one_curriculum(pair, scorer, run_id, kind, alignment):
    first, second = pair(kind, "ddp", gradalign={"use": "both", "alignment": alignment})
    assert first["weights"] == second["weights"]
    assert kind == "plain" or max(first["apart"], second["apart"]) < 0.02
    with Client(scorer.url, run_id=f"{run_id}-run") as client:
        assert sum(row.times_scored for row in client.problems(limit=1000).problems) == 4 * 3


ACCUMULATED = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}


@pytest.mark.parametrize("settings", [{}, pytest.param(ACCUMULATED, marks=LONG)])
def test_a_model_sharded_by_fsdp2_is_aligned(pair, settings):
    first, second = pair("witness", "fsdp2", **settings)
    assert max(first["apart"], second["apart"]) < 0.02


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"lora": True, "gradient_checkpointing": True, **ACCUMULATED}, marks=LONG),
        pytest.param({"scaled": True, "silent": 1, "per_device_train_batch_size": 8}, marks=LONG),
    ],
    ids=["whole", "lora", "one-backward-a-group"],
)
def test_sketches_of_a_model_sharded_by_fsdp2_are_those_of_the_model_in_one_piece(pair, settings):
    first, second = pair("sketched", "fsdp2", gradalign={"alignment": "capture"}, **settings)
    assert max(first["apart"], second["apart"]) < 1e-5


@LONG
def test_sixteen_bits_cost_the_sketches_of_shards_what_they_cost_those_of_whole_weights(pair):
    settings = {"gradalign": {"alignment": "capture"}, "bf16": True}
    (whole, _), (sharded, _) = (pair("sketched", engine, engine, **settings) for engine in ("ddp", "fsdp2"))
    assert sharded["apart"] == pytest.approx(whole["apart"], rel=0.01)
    assert whole["apart"] > 1e-4


@LONG
@pytest.mark.parametrize(("engine", "alignment"), [("ddp", "forward"), ("fsdp2", "forward"), ("fsdp2", "capture")])
def test_updates_of_two_processes_are_bit_for_bit_what_they_would_be_without_measuring(pair, engine, alignment):
    ends, settings = [], {**ACCUMULATED, "gradalign": {"alignment": alignment}}
    for kind in ("unweighted", "blind"):
        ends.append([(rank["weights"], rank["moments"]) for rank in pair(kind, engine, kind, **settings)])
    assert ends[0] == ends[1]


@LONG
@pytest.mark.parametrize(
    ("engine", "alignment"),
    [
        ("ddp", "capture"),
        ("ddp", "forward"),
        ("fsdp2", "forward"),
        ("fsdp2", "capture"),
        ("zero2", "capture"),
        ("zero3", "forward"),
    ],
)
def test_a_process_without_a_signal_holds_nobody_up(pair, engine, alignment):
    if engine.startswith("zero"):
        needs("deepspeed")
    first, _ = pair("plain", engine, silent=1, per_device_train_batch_size=8, gradalign={"alignment": alignment})
    shares = [entry["gradalign/no_signal"] for entry in first["log"] if "gradalign/no_signal" in entry]
    assert shares == [0.5] * 4


def test_processes_that_were_given_other_things_are_refused_and_none_waits(base, scorer, run_id, tmp_path):
    ran = started(base, tmp_path, scorer.url, run_id, "plain", "ddp", second={"refresh_every": 7})
    assert ran.returncode != 0
    for rank in range(2):
        assert (
            f"[rank{rank}]: gradalign.errors.GradAlignError: GradAlignConfig.refresh_every is 2 on process 0"
            in ran.stderr
        )
    assert "and 7 on process 1. Give all processes the same settings" in ran.stderr
