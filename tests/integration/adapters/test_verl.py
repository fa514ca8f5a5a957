"""The verl adapter's ids and sampler against the interface as released, with a real scorer; test_verl_real.py has verl."""

import logging

import pytest
import torch
from verlkit import Actor, Batch, Rows, columns, model, pool, row

from gradalign import Client
from gradalign.errors import GradAlignError
from gradalign.sketch import Sketcher
from gradalign_trainer.adapters.problemids import stable_id
from gradalign_trainer.adapters.verl.capture import ActorCapture
from gradalign_trainer.adapters.verl.problems import mark_problems
from gradalign_trainer.adapters.verl.settings import VerlSettings


def test_ids_do_not_collide_where_verl_s_index_does():
    rows = Rows([row(1, index=0), row(1, "other", index=0), row(2), row(1, index=5), row(3, problem_id="given")])
    found = mark_problems(rows)
    assert list(found.pool.values()) == [[0, 3], [1], [2], [4]]  # rows 0 and 3 are one problem
    assert next(iter(found.pool)) == stable_id(rows.dataframe[0]["prompt"], "2", "sums")
    assert list(found.pool)[-1] == "given"
    assert rows.dataframe[1]["extra_info"] == {"index": 0, "problem_id": list(found.pool)[1]}


def test_a_hugging_face_dataset_is_marked_alike():
    datasets = pytest.importorskip("datasets", reason="comes with the extra huggingface")
    plain, table = Rows([row(1, index=0), row(2, index=0)]), Rows(None)
    table.dataframe = datasets.Dataset.from_list(plain.dataframe)
    assert mark_problems(table) == mark_problems(plain)
    assert [each["extra_info"]["problem_id"] for each in table.dataframe] == list(mark_problems(plain).pool)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(1), row(1, gradalign="trusted")], "trusted in one row and candidates in another"),
        ([row(1, gradalign="trusted")], "expected candidates beside them"),
    ],
)
def test_what_cannot_be_validated_on_is_refused(rows, words):
    with pytest.raises(GradAlignError, match=words):
        mark_problems(Rows(rows))


def test_settings_name_what_is_missing_and_what_is_unknown():
    with pytest.raises(GradAlignError, match="GRADALIGN_VERL_URL, GRADALIGN_VERL_RUN_ID not set"):
        VerlSettings.from_environment({})
    with pytest.raises(GradAlignError, match="GRADALIGN_VERL_DIMM is set and means nothing"):
        VerlSettings.from_environment({"GRADALIGN_VERL_DIMM": "3"})
    with pytest.raises(GradAlignError, match="GRADALIGN_VERL_DIM = 'x'; expected a number"):
        VerlSettings.from_environment({"GRADALIGN_VERL_DIM": "x"})


def test_a_resumed_sampler_goes_on_and_puts_the_curriculum_back(settings, scorer, run_id, make_sampler, close):
    named = settings(exploration=0)
    batch = Batch(*columns([(f"p{number}", False) for number in range(4)] + [("t0", True)], 4))
    close(ActorCapture(Actor(model()), named))(batch)
    sampler = make_sampler(pool(12, trusted=1), 2)
    rows = iter(sampler)
    [next(rows) for _ in range(4)]
    state = sampler.state_dict()
    with Client(scorer.url, run_id=run_id) as client:
        kept = client.run().policy_version
        straight = [next(rows) for _ in range(4)]
        client.score(["p9"], torch.ones(1, 256), policy_version=40, projection=Sketcher(model(), dim=256).projection)
        resumed = make_sampler(pool(12, trusted=1), 2)
        resumed.load_state_dict(state)
        again = iter(resumed)
        assert [next(again) for _ in range(4)] == straight
        assert client.run().policy_version == kept
    assert len(list(again)) == len(resumed) - 8


def test_a_run_that_is_ahead_without_a_snapshot_is_said(settings, scorer, run_id, make_sampler, caplog):
    settings()
    with Client(scorer.url, run_id=run_id) as client:
        client.score(
            ["p1"],
            torch.ones(1, 256),
            policy_version=40,
            projection=Sketcher(model(), dim=256).projection,
            strategy="norm",
        )
    sampler = make_sampler(pool(8), 2)
    sampler.load_state_dict({"yielded": 2, "draws": 1, "queue": [], "version": 1, "fallbacks": 0, "snapshot": "verl-1"})
    with caplog.at_level(logging.WARNING):
        assert len(list(sampler)) == 6
    assert "snapshot verl-1 is gone" in caplog.text
    assert caplog.text.count("is ahead of this checkpoint (policy version 40, here 1)") == 1


def test_without_a_scorer_batches_are_random_and_counted(settings, make_sampler, caplog):
    settings(url="http://127.0.0.1:9", retries=0)
    sampler = make_sampler(pool(8), 4)
    with caplog.at_level(logging.WARNING):
        drawn = list(sampler)
    assert len(drawn) == len(sampler) == 8
    assert len(set(drawn[:4])) == 4
    assert sampler.fallbacks == 2
    assert "Batch 2 is random, 2 so far: the scorer is away" in caplog.text


def test_it_says_when_no_scores_arrive(settings, make_sampler, caplog):
    settings()
    sampler = make_sampler(pool(8), 4)
    batch = Batch(*columns([("p1", False), ("t0", True)], 2))
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            sampler.update(batch)
    assert sampler.version == 8
    assert "for 8 steps (the last batch had 2 problems, 1 of them trusted)" in caplog.text
