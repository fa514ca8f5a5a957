"""The warnings: each has a figure that brings it on, and one beside it that does not."""

import dataclasses

import pytest

from gradalign import RoundRecord, RunState
from gradalign_scorer.service.advice import run_warnings

NOW = 1_000_000.0
CALM = RunState(
    run_id="r",
    epoch=0,
    policy_version=40,
    projection={"dim": 4096},
    strategy="cosine",
    validation_version=3,
    validation_policy_version=38,
    validation_problems=100,
    coherence=0.5,
    reliability=0.97,
    problems=500,
    rounds=9,
    created_at=NOW - 5000,
    updated_at=NOW - 5,
)


def scored(at=NOW, problems=100, **summary):
    return RoundRecord(
        round=1, kind="score", at=at, policy_version=1, validation_version=1, problems=problems, selected=0,
        summary={"no_signal": 0, "rejected": 0, "reliability": 0.97, **summary},
    )  # fmt: skip


def warned(rounds=(), **state):
    return {w.kind: w.message for w in run_warnings(dataclasses.replace(CALM, **state), rounds or [scored()], NOW)}


def test_a_calm_run_has_none():
    assert warned() == {}


@pytest.mark.parametrize(("age", "words"), [(32, None), (40, "validation is 40 policy versions old")])
def test_an_old_validation(age, words):
    assert warned(validation_policy_version=100 - age, policy_version=100).get("validation_old") == words
    assert warned(validation_policy_version=None, policy_version=100) == {}


def test_a_validation_without_a_direction():
    assert "0.11, and chance alone gives 0.10" in warned(coherence=0.11)["validation_incoherent"]
    assert warned(coherence=0.16) == warned(coherence=0.11, validation_problems=3) == {}


def test_a_small_sketch():
    latest = scored(reliability=0.8, advised_dim=16384)
    words = "the sketch of k = 4096 is too small for this run: k = 16384 would do"
    assert warned([scored(), latest]) == {"sketch_small": words}
    assert warned([latest, scored()]) == {}
    assert "reliability is 0.10" in warned([scored(reliability=0.1)])["sketch_small"]


@pytest.mark.parametrize(("silent", "words"), [(24, None), (32, "32% of the problems had no signal")])
def test_problems_without_a_signal(silent, words):
    refresh = dataclasses.replace(scored(no_signal=9, problems=9), kind="refresh")
    assert warned([scored(no_signal=silent), refresh]).get("no_signal") == words


def test_rejected_rows():
    assert warned([scored(rejected=2), scored()]) == {
        "rejected": "2 of 202 problems were left out for NaN or Inf in their gradients"
    }


@pytest.mark.parametrize(
    ("seconds", "pause", "words"),
    [
        (599, 10, None),
        (720, 10, "the trainer has been silent for 12 minutes"),
        (720, 300, None),
        (3 * 3600 + 300, 300, "the trainer has been silent for 3 hours 5 minutes"),
        (24 * 3600, 10, None),  # over
    ],
)
def test_a_silent_trainer(seconds, pause, words):
    rounds = [scored(at=NOW - seconds - pause), scored(at=NOW - seconds)]
    assert warned(rounds, updated_at=NOW - seconds).get("silent") == words


def test_a_run_that_is_over_has_none():
    assert warned([scored(no_signal=99)], updated_at=NOW - 86400, policy_version=1000) == {}


def test_the_most_pressing_comes_first():
    kinds = list(warned([scored(no_signal=99, rejected=1)], updated_at=NOW - 900, policy_version=1000))
    assert kinds == ["silent", "validation_old", "rejected", "no_signal"]


@pytest.mark.parametrize(
    ("quotient", "warns"), [(None, False), (0.91, False), (1.09, False), (0.89, True), (1.11, True)]
)
def test_products_that_do_not_add_up(quotient, warns):
    found = warned(products_quotient=quotient)
    assert set(found) == ({"products_off"} if warns else set())
    if warns:
        assert f"{quotient:.2f} times the norm" in found["products_off"]


def noisy(left, problems=64):
    return scored(
        problems=problems, alignment_variance=2.0, rollout_variance=2.0 * (1 - left), rollout_reliability=left
    )


def test_nothing_to_rank():
    assert "correlate with this one by 0.05" in warned([noisy(0.05)])["nothing_to_rank"]
    assert warned([noisy(0.11)]) == {}
    assert warned([noisy(0.0, problems=63)]) == {}


def test_small_rounds_are_judged_together():
    """Chance puts a small round's own figure far above 0 or below it; the sums tell."""
    assert "by 0.00" in warned([noisy(0.5, 16), noisy(-0.5, 16)] * 4)["nothing_to_rank"]
    assert warned([noisy(0.5, 16), noisy(-0.1, 16)] * 4) == {}
