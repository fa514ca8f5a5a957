"""What the tests of the verl adapter start from: settings in the environment, samplers, and an end for what is opened."""

import sys
from contextlib import ExitStack

import pytest
import verlkit
from verlkit import Rows

from gradalign_trainer.adapters.verl.settings import VerlSettings


@pytest.fixture
def settings(monkeypatch, scorer, run_id):
    def give(**named):
        for name, value in {"url": scorer.url, "run_id": run_id, "dim": 256, **named}.items():
            monkeypatch.setenv(f"GRADALIGN_VERL_{name.upper()}", str(value))
        return VerlSettings.from_environment()

    return give


@pytest.fixture
def close():
    """Closes what it is given behind the test, and gives it back."""
    with ExitStack() as stack:

        def later(thing):
            stack.callback(thing.close)
            return thing

        yield later


@pytest.fixture
def make_sampler(monkeypatch, close):
    if not verlkit.REAL:
        verlkit.install_stand_in(monkeypatch)
        monkeypatch.delitem(sys.modules, "gradalign_trainer.adapters.verl.sampler", raising=False)
    from gradalign_trainer.adapters.verl.sampler import GradAlignSampler

    def make(rows, size, seed=1):
        return close(GradAlignSampler(data_source=Rows(rows), data_config={"train_batch_size": size, "seed": seed}))

    return make
