"""Grids whose runs are longer or shorter than their world has them."""

import pickle
from pathlib import Path

import pytest

from gradalign_trainer.reproduce.grid.cells import Cell, Recipe
from gradalign_trainer.reproduce.grid.methods import METHODS
from gradalign_trainer.settings import SettingsError
from gradalign_trainer.world import at_updates
from gradalign_trainer.worlds.builtin import ArithmeticWorld
from gradalign_trainer.worlds.tasks.smollm2 import SmolLM2World


@pytest.mark.parametrize("world", [ArithmeticWorld(), SmolLM2World()], ids=lambda world: world.name)
def test_runs_of_another_length_end_at_the_updates_asked_for(world):
    longer = at_updates(world, 90)
    assert longer.scale.rollouts == world.scale.rollouts * 90 // world.scale.updates
    assert pickle.loads(pickle.dumps(longer)) == longer
    for method in METHODS:
        cell = Cell(0, world.any_regime, method)
        config = Recipe(world=longer, long=False).config(cell, Path("base"), Path("out"), None)
        assert config.rounds * config.updates_per_round == 90
        assert Recipe(world=longer).config(cell, Path("base"), Path("out"), None).rounds >= config.rounds
        assert Recipe(world=longer).digest(cell) != Recipe(world=world).digest(cell)
    with pytest.raises(SettingsError, match=f"--updates 31: a round in the world {world.name} has 2 updates"):
        at_updates(world, 31)
