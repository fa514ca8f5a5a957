"""A data loader of chosen rows with its curriculum in its state: torchdata's where it is installed, else its stand-in."""

import importlib
import sys

import pytest
import recipekit

IDS = ["a", "b", "c", "d"]


class InOrder:
    """A link that hands out what it was given."""

    def __init__(self, *batches):
        self.batches, self.loaded = list(batches), None

    def next(self, count):
        return self.batches.pop(0)

    def state_dict(self):
        return {"step": 7}

    def load_state_dict(self, state):
        self.loaded = state


@pytest.fixture
def make(monkeypatch):
    recipekit.stand_in_loader(monkeypatch)
    module = importlib.import_module("gradalign_trainer.adapters.base.loader")
    return lambda *batches: module.CurriculumLoader(InOrder(*batches), IDS, range(4), 2)


def test_batches_are_what_was_chosen(make):
    loader = make(["b", "a"], ["d", "b"])
    assert list(loader) == [[1, 0], [3, 1]]
    assert len(loader) == 2


def test_its_state_has_the_links_in_it(make):
    loader = make(["b", "a"])
    assert next(iter(loader)) == [1, 0]
    again = make(["d", "c"])
    again.load_state_dict(loader.state_dict())
    assert again.link.loaded == {"step": 7}
    assert list(again) == [[3, 2]]  # one of two batches was behind it


def test_a_checkpoint_of_another_loader_is_said_and_begins_an_epoch(make, monkeypatch):
    loader, said = make(["b", "a"], ["d", "c"]), []
    monkeypatch.setattr(
        sys.modules[type(loader).__module__].logger, "warning", said.append
    )  # AReaL takes the root logger
    loader.load_state_dict({"_num_yielded": 1})
    assert len(said) == 1
    assert "written without gradalign" in said[0]
    assert loader.link.loaded is None
    assert list(loader) == [[1, 0], [3, 2]]
