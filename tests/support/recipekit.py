"""What tests of the recipes in services/trainer/examples share: loading them, a policy whose rewards are known, stand-ins.

A trainer that is not installed is stood in for by modules with the signatures that its recipe touches (`stand_in`), and its
test says which commit they were read at. `make test-adapters` installs the trainers that a package index has.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from torch.utils.data import DataLoader

from gradalign import Client

EXAMPLES = Path(__file__).parents[2] / "services/trainer/examples"
GONE = "http://127.0.0.1:9"
PROBLEMS = [f"{kind}{number}" for kind in ("solved", "never", "half") for number in range(8)]


def installed(module):
    """Whether a trainer is here, to be tested itself; in an environment that was made for it a missing one is an error."""
    try:
        importlib.import_module(module)
    except ImportError:
        if "GRADALIGN_TEST_ENVIRONMENT" in os.environ:
            raise
        return False
    return True


def stand_in(monkeypatch, **modules):
    """Put modules where imports find them: `stand_in(monkeypatch, **{"trainer.data": {"Dataset": Dataset}})`."""
    for path, names in modules.items():
        parts = path.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            if name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, ModuleType(name))
                if depth > 1:
                    setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], sys.modules[name])
        for name, value in names.items():
            setattr(sys.modules[path], name, value)


class Loader(DataLoader):
    """As `StatefulDataLoader`, as far as its sampler's state goes."""

    def state_dict(self):
        return dict(self.sampler.state_dict())

    def load_state_dict(self, state):
        self.sampler.load_state_dict(state)


class Later:
    """As a reference of Ray's, with its value in it."""

    def __init__(self, value):
        self.value = value


def stand_in_loader(monkeypatch):
    """`Loader` where imports find torchdata's, if that is not here."""
    if importlib.util.find_spec("torchdata") is None:
        stand_in(monkeypatch, **{"torchdata.stateful_dataloader": {"StatefulDataLoader": Loader}})


def recipe(name):
    """The module of a recipe; loaded once, since trainers keep what they loaded by name."""
    if f"recipe_{name}" in sys.modules:
        return sys.modules[f"recipe_{name}"]
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", EXAMPLES / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reward(question, attempt):
    """Of a policy that always solves some problems, never others, and every second attempt at the rest."""
    return {"s": 1.0, "n": 0.0, "h": float(attempt % 2)}[question[0]]


def useful(questions):
    """How many have a signal."""
    return sum(question.startswith("half") for question in questions)


def run_of(url, run_id):
    """What the scorer holds of a run."""
    with Client(url, run_id=run_id) as client:
        return client.run()


def lines_of(name):
    """Lines of a recipe."""
    return len((EXAMPLES / f"{name}.py").read_text().splitlines())


def source_here(package):
    """Whether a package is here, which is not imported; in an environment made for it a missing one is an error."""
    found = importlib.util.find_spec(package) is not None
    if not found and "GRADALIGN_TEST_ENVIRONMENT" in os.environ:
        raise ImportError(f"{package} is not installed in the environment that is to test it")
    return found
