"""The driver's conversation with a real scorer: what a run sends and gets, and what the scorer holds that is not its own."""

import logging

import pytest

from gradalign import Client, Projection
from gradalign.errors import GradAlignError
from gradalign_trainer.adapters.verl.v1.link import ScorerLink
from gradalign_trainer.adapters.verl.v1.settings import GradAlignSettings
from gradalign_trainer.curriculum.products import MeasuredProducts

IDS = ["a", "b", "c", "d"]


@pytest.fixture
def link(scorer, run_id, close):
    def give(url=scorer.url, **named):
        return close(ScorerLink(GradAlignSettings(scorer_url=url, run_id=run_id, retries=0, exploration=0.0, **named)))

    return give


def products(names, first=1.0, **named):
    return MeasuredProducts(
        problem_ids=names,
        products=[[first / (place + 1), 0.5 / (place + 1)] for place in range(len(names))],
        tokens=[4] * len(names),
        pass_rates=[0.5] * len(names),
        **named,
    )


def validation():
    return products(["t"], length=1.5)


def test_a_run_refreshes_scores_and_selects(link, scorer, run_id):
    run = link(rollout_weights=True)
    run.begin(0)
    assert run.needs_validation
    assert run.score(products(IDS), 0) is None  # nothing to score against
    assert run.select(IDS, 2, 0, 0) == ()  # nothing was scored
    run.refresh(validation(), 0)
    assert not run.needs_validation
    ranking = run.score(products(IDS, rollout_weights=True), 0)
    assert [len(weights) for weights in ranking.rollout_weights] == [2] * 4
    assert list(run.select(IDS, 2, 1, 1)) == ["a", "b"]
    with Client(scorer.url, run_id=run_id) as client:
        assert (client.run().kind, client.run().epoch) == ("products", 1)


def test_nothing_is_scored_while_the_engine_holds_no_validation_gradient(link):
    run = link()
    run.begin(0)
    run.refresh(validation(), 0)
    run.unmeasured()
    assert run.needs_validation
    assert run.score(products(IDS), 0) is None
    assert run.count_fallback() == "the scorer held no validation gradient that fits"


def test_a_validation_gradient_without_a_signal_replaces_none(link):
    run = link()
    run.begin(0)
    run.refresh(products(["t"], first=1.0, length=1.5), 0)
    before = run.validation
    run.refresh(MeasuredProducts(["t"], [[0.0, 0.0]], [4], [1.0], length=0.0), 1)
    assert run.validation is before
    assert not run.needs_validation


def test_a_resumed_run_puts_its_curriculum_back_and_fences_the_one_before_off(link, scorer, run_id):
    first = link()
    first.begin(0)
    first.refresh(validation(), 1)
    first.score(products(IDS), 1)
    assert first.snapshot("verl-global_step_2") == "verl-global_step_2"
    first.score(products(["e"]), 9)
    again = link()
    again.begin(2, "verl-global_step_2")
    assert again.needs_validation  # the engine's went with the process
    with Client(scorer.url, run_id=run_id) as client:
        assert (client.run().policy_version, client.run().epoch) == (1, 2)
        assert {problem.problem_id for problem in client.problems(limit=10).problems} == set(IDS)
    with pytest.raises(GradAlignError, match="epoch"):
        first.score(products(IDS), 9)


def test_a_snapshot_that_is_gone_is_said(link, caplog):
    first = link()
    first.begin(0)
    first.refresh(validation(), 0)
    with caplog.at_level(logging.WARNING):
        link().begin(3, "verl-global_step_3")
    assert "The curriculum of verl-global_step_3 is not at the scorer, whose present one goes on" in caplog.text


@pytest.mark.parametrize(("step", "here"), [(0, "this training begins at step 0"), (3, "the checkpoint is at step 3")])
def test_a_curriculum_of_a_later_policy_is_refused(link, scorer, run_id, step, here):
    first = link()
    first.begin(0)
    first.refresh(validation(), 7)
    with pytest.raises(GradAlignError, match=f"at step 7, and {here}.*delete_run"):
        link().begin(step)


def test_a_run_of_sketches_is_refused(link, scorer, run_id):
    projection = Projection(dim=8, seed=0, parameters="ab" * 32)
    with Client(scorer.url, run_id=run_id) as client:
        client.score(["a"], [[1.0] * 8], policy_version=0, projection=projection, strategy="norm")
    with pytest.raises(GradAlignError, match=r"holds sketches of run .* Take a new gradalign\.run_id"):
        link().begin(0)


def test_a_scorer_that_is_away_is_said_once_and_costs_no_run(link, caplog):
    run = link(url="http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        run.begin(0)
        run.refresh(validation(), 0)
        assert run.score(products(IDS), 0) is None
        assert run.select(IDS, 2, 0, 0) == ()
        assert run.count_fallback() == "the scorer was away"
        run.close()
    assert caplog.text.count("The scorer at http://127.0.0.1:9 is away") == 1
    assert "1 batch went on without weights (1: the scorer was away)" in caplog.text
