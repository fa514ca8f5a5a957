"""Rounds without a ranking: counted by why, in words, in metrics and through checkpoints."""

import logging

import pytest
import torch

from gradalign.errors import UnavailableError, ValidationMissing
from gradalign.wire.projection import Projection
from gradalign_trainer.curriculum.curriculum import Curriculum, ScorerAddress
from gradalign_trainer.curriculum.measured import Measured
from gradalign_trainer.fallbacks import AWAY, NO_SIGNAL, UNFIT, Fallbacks

PROJECTION = Projection(dim=4, seed=0, parameters="0" * 64)


def test_the_words_say_how_many_and_why():
    assert Fallbacks().told() == "0 rounds without the scorer"
    assert Fallbacks({NO_SIGNAL: 1}).told() == "1 round chose at random (1: no validation problem had a signal)"
    assert Fallbacks({AWAY: 2, NO_SIGNAL: 1, UNFIT: 1}).told("batch", "batches", "went on") == (
        "4 batches went on (2: the scorer was away; 1: no validation problem had a signal; 1: the scorer held no "
        "validation gradient that fits)"
    )


def test_figures_and_checkpoints_keep_the_reasons():
    kept = Fallbacks({AWAY: 2, NO_SIGNAL: 1})
    assert kept.figures() == {
        "fallbacks": 3.0,
        "fallbacks_away": 2.0,
        "fallbacks_no_signal": 1.0,
        "fallbacks_unfit": 0.0,
        "fallbacks_unmeasured": 0.0,
    }
    assert Fallbacks.from_figures(kept.figures()).told() == kept.told()
    assert Fallbacks.of(3, dict(kept)).told() == kept.told()
    assert Fallbacks.of(2, {}).told() == "2 rounds chose at random (2: counted before reasons were kept)"
    assert Fallbacks.of(0, {}).total() == 0


class Answers(Curriculum):
    """A curriculum whose scorer answers as a test says."""

    def __init__(self):
        address = ScorerAddress("http://127.0.0.1:9", retries=0)
        super().__init__("r", address, strategy="cosine", aggregation="pooled", projection=PROJECTION, seed=0)
        self.raises = None

    def _ready(self):
        if self.raises is not None:
            raise self.raises
        return super()._ready()


def measured(value):
    return Measured(["a", "b"], torch.full((2, 4), value), [1, 1], [2, 2], [0.5, 0.5])


@pytest.mark.parametrize(
    ("error", "value", "why", "said"),
    [
        (UnavailableError("gone"), 1.0, AWAY, "the scorer at http://127.0.0.1:9 is away"),
        (None, 0.0, NO_SIGNAL, "no validation problem had a signal"),
        (ValidationMissing("none"), 1.0, UNFIT, "the scorer held no validation gradient that fits"),
    ],
)
def test_every_random_choice_says_why(caplog, error, value, why, said):
    caplog.set_level(logging.WARNING)
    curriculum = Answers()
    curriculum.raises = error
    if not isinstance(error, ValidationMissing):
        assert curriculum.refresh_validation(measured(value), policy_version=0) is None
    if error is not None:
        choice = curriculum.choose(measured(1.0), 1, policy_version=0, round_number=0)
    else:
        choice = curriculum.choose_at_random(["a", "b"], 1, round_number=0)
    assert choice.fallback
    assert dict(curriculum.reasons) == {why: 1}
    assert curriculum.fallbacks == 1
    assert f"Round 1 chooses at random: {said} (1 such choice so far)." in caplog.text
    curriculum.close()
