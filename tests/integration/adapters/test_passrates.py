"""The base that recipes stand on, against a real scorer: a plain trainer that chooses problems by pass rates."""

import json
import logging
from collections import Counter

import pytest

from gradalign import Client, Projection
from gradalign.errors import GradAlignError
from gradalign_trainer.adapters.base.passrates import PassRateLink, PassRateSettings
from gradalign_trainer.settings import SettingsError

GONE = "http://127.0.0.1:9"
IDS = [f"{kind}{number}" for kind in ("solved", "never", "half") for number in range(8)]


@pytest.fixture
def make(scorer, run_id, close):
    def give(url=scorer.url, ids=IDS, **named):
        return close(PassRateLink(PassRateSettings(scorer_url=url, run_id=run_id, retries=0, **named), ids))

    return give


def rewards(names, group=16):
    """Of a policy that always solves some problems, never others, and every second rollout of the rest."""
    outcome = {"s": [1.0] * group, "n": [0.0] * group, "h": [0.0, 1.0] * (group // 2)}
    return {name: outcome[name[0]] for name in names}


def train(link, steps, batch=8):
    """The batches of a plain trainer's steps, each with what the link chose."""
    taken = []
    for step in range(steps):
        taken.append(link.next(batch, step))
        link.observe(rewards(taken[-1]), step)
    return taken


def useful(batches):
    return sum(name.startswith("half") for batch in batches for name in batch)


def test_the_order_moves_to_problems_with_a_signal(make, scorer, run_id):
    taken = train(make(), 12)
    assert all(len(set(batch)) == 8 for batch in taken)
    # One in three has a signal; a choice that learned nothing takes 8 of 24, with a deviation of 2.3.
    assert useful(taken[-3:]) >= 16
    with Client(scorer.url, run_id=run_id) as client:
        assert (client.run().kind, client.run().policy_version) == ("pass_rates", 11)
        assert client.problem("half0").belief[0] > 4


def test_a_batch_larger_than_the_pool_repeats_problems(make):
    assert Counter(make(ids=["a", "b"]).next(4)) == {"a": 2, "b": 2}


def test_rewards_of_another_scale_and_ones_that_are_not_finite(make, scorer, run_id, caplog):
    link = make(worst_reward=-1.0, best_reward=1.0, discount=1.0)
    with caplog.at_level(logging.WARNING):
        link.observe({"half0": [-1.0, 1.0, float("nan"), 3.0], "half1": [float("inf")]}, 4)
    assert "2 rewards at step 4 are not finite" in caplog.text
    with Client(scorer.url, run_id=run_id) as client:
        assert client.problem("half0").belief == pytest.approx((3.0, 2.0))
        assert client.run().problems == 1
    assert link.figures()["signal"] == 1.0


def test_more_problems_than_a_request_takes_go_in_several(make, scorer, run_id):
    many = [f"p{number}" for number in range(4100)]
    make(ids=many).observe({name: [1.0, 0.0] for name in many}, 0)
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().problems == 4100


def test_a_resumed_trainer_has_the_curriculum_of_its_checkpoint(make, scorer, run_id):
    first = make()
    tried = train(first, 6)[0][0]
    state = json.loads(json.dumps(first.state_dict()))
    with Client(scorer.url, run_id=run_id) as client:
        before = client.problem(tried).belief
        first.observe({tried: [1.0] * 64}, 9)  # lost with the process
        again = make()
        again.load_state_dict(state)
        again.next(8)
        assert client.problem(tried).belief == before
        assert (client.run().policy_version, client.run().epoch) == (5, 2)
    assert again.step == 5
    with pytest.raises(GradAlignError, match="epoch"):
        first.observe(rewards(IDS), 9)


def test_a_link_in_use_can_go_back_too(make, scorer, run_id):
    link = make()
    train(link, 2)
    state = link.state_dict()
    train(link, 5)
    link.load_state_dict(state)
    link.next(8)
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().policy_version == 1


def test_without_a_scorer_problems_come_epoch_by_epoch_and_it_is_said_once(make, caplog):
    link = make(url=GONE)
    with caplog.at_level(logging.WARNING):
        taken = [name for batch in train(link, 3) for name in batch]
        state = link.state_dict()
        link.close()
    assert sorted(taken) == sorted(IDS)
    assert state["snapshot"] is None
    assert caplog.text.count(f"The scorer at {GONE} is away") == 1
    assert "3 batches went on in plain order (3: the scorer was away)" in caplog.text
    figures = link.figures()
    assert (figures["fallbacks_away"], figures["fallback"]) == (3.0, 1.0)


def test_a_scorer_that_is_killed_costs_the_choice_and_is_taken_up_again(start_scorer, make):
    first = start_scorer()
    link = make(url=first.url)
    train(link, 2)
    port = first.address[1]
    first.kill()
    assert len(set(link.next(8, 2))) == 8
    link.observe(rewards(IDS), 2)  # lost
    start_scorer("--port", str(port))
    taken = train(link, 8)
    assert link.fallbacks == 1
    assert useful(taken[-3:]) >= 16


def test_a_run_of_another_kind_or_a_later_step_is_refused(make, scorer, run_id):
    projection = Projection(dim=8, seed=0, parameters="ab" * 32)
    with Client(scorer.url, run_id=run_id) as client:
        client.score(["a"], [[1.0] * 8], policy_version=0, projection=projection, strategy="norm")
        with pytest.raises(GradAlignError, match=r"holds sketches of run .* sends pass rates.* Take a new run_id"):
            make().next(2)
        client.delete_run()
        train(make(), 5)
        with pytest.raises(GradAlignError, match=r"at step 4, and this training begins at step 0.*delete_run"):
            make().next(2)


def test_settings_from_the_environment(scorer):
    given = {"GRADALIGN_SCORER_URL": scorer.url, "GRADALIGN_RUN_ID": "x", "GRADALIGN_COOLDOWN": "2"}
    assert PassRateSettings.from_environment(given) == PassRateSettings(scorer_url=scorer.url, run_id="x", cooldown=2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "GRADALIGN_SCORER_URL is not set; expected GRADALIGN_SCORER_URL=http://HOST:8000"),
        ({"GRADALIGN_RUN_ID": "x", "GRADALIGN_SEED": "one"}, r"GRADALIGN_SEED = 'one'; expected a number \(int\)"),
    ],
)
def test_an_environment_that_says_nothing_or_nonsense(given, said):
    with pytest.raises(SettingsError, match=said):
        PassRateSettings.from_environment(given)


def test_settings_and_datasets_that_cannot_be_used(make):
    with pytest.raises(SettingsError, match=r"worst_reward = 1\.0 is not below best_reward = 1\.0"):
        PassRateSettings(scorer_url=GONE, run_id="x", worst_reward=1.0)
    with pytest.raises(SettingsError, match="problem_ids is empty"):
        make(ids=[])
