"""A base model that knows a little and training runs on it, pages of a browser, and a stack of containers."""

import os
import re
import subprocess
import zlib

import pytest
from browserkit import CHROMIUM, FLAGS, SIZES
from composekit import Stack, engine_fault
from filelock import FileLock

from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.records import RunData
from gradalign_trainer.runs.loop import train
from gradalign_trainer.worlds.basemodel import BaseTraining, base_model
from gradalign_trainer.worlds.regimes import make_world

SMALL = {
    "device": "cpu",
    "dim": 512,
    "pool_size": 24,
    "select_fraction": 1 / 3,
    "group_size": 4,
    "validation_problems": 8,
    "validation_rollouts": 6,
    "rounds": 2,
    "updates_per_round": 2,
    "batch_problems": 4,
    "problems_per_backward": 8,
    "warmup_steps": 1,
    "scorer_retries": 1,
    "scorer_timeout": 120.0,
}


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of a base model that was taught for a few seconds, once for all processes of the tests."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "models"
    with FileLock(f"{folder}.lock"):
        return base_model(folder, BaseTraining(steps=200, batch=128))


def graded(problem, completion):
    """A reward that differs wherever completions do, so that groups have a signal whatever the policy has learned."""
    return zlib.crc32(f"{problem.problem_id} {completion}".encode()) / 2**32


@pytest.fixture(scope="session")
def data():
    """A small world in which every problem is of use."""
    world = make_world("inverted", seed=3, pool=96, validation=8, heldout=24)
    return RunData(pool=world.pool, validation=world.validation, heldout=world.heldout, reward=graded)


class Recorder:
    """An observer that remembers, and does something when a stage begins."""

    def __init__(self, act=lambda name, round_number: None):
        self.reports, self.stages, self.act = [], [], act

    def stage(self, name, total):
        self.stages.append(name)
        self.act(name, len(self.reports))

    def advance(self, amount=1):
        pass

    def report(self, report):
        self.reports.append(report)


@pytest.fixture
def play(base, data, tmp_path, run_id):
    """Trains: `play(url, "name", act=..., resume=..., **settings)`; the result and what an observer saw."""

    def run(url, name="run", *, act=lambda name, round_number: None, resume=False, data=data, **settings):
        config = TrainConfig(
            **{"run_id": run_id, "output": tmp_path / name, "scorer_url": url, "model": str(base), **SMALL, **settings}
        )
        seen = Recorder(act)
        return train(config, data, base, resume=resume, observer=seen), seen

    return run


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, start_scorer):  # pages close before the scorers that they look at
    """Opens a page at a size; at the end of the test its console must have stayed empty."""
    contexts, complaints = [], []

    def open_(size="desktop", *, allowed=None, **settings):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda m: (allowed and re.search(allowed, m.text)) or complaints.append((m.type, m.text)))
        page.on("pageerror", lambda error: complaints.append(("error", str(error))))
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def stack(tmp_path):
    fault = engine_fault()
    if fault is not None:
        pytest.skip(f"no docker engine: {fault}")
    stack = Stack(tmp_path)
    yield stack
    stack.compose("--profile", "demo", "--profile", "monitoring", "down", "--volumes", "--remove-orphans")
    images = [f"gradalign-{part}:{stack.environment['GRADALIGN_TAG']}" for part in ("scorer", "trainer")]
    subprocess.run(["docker", "rmi", *images], env=stack.environment, capture_output=True, check=False)
