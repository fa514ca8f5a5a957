"""Worlds by name, and the world of a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from gradalign_trainer.settings import SettingsError, nearest
from gradalign_trainer.world import World
from gradalign_trainer.worlds.builtin import ArithmeticWorld
from gradalign_trainer.worlds.tasks.folder import FILE, folder_world
from gradalign_trainer.worlds.tasks.smollm2 import SmolLM2World

__all__ = ["WORLDS", "world_of"]

WORLDS: Mapping[str, Callable[[], World]] = {"arithmetic": ArithmeticWorld, "smollm2": SmolLM2World}


def world_of(name: str) -> World:
    """The world of a name of `WORLDS`, or of a folder with a `world.toml`.

    Raises:
        SettingsError: it is neither, or the file does not describe a world.
    """
    if name in WORLDS:
        return WORLDS[name]()
    if (Path(name).expanduser() / FILE).is_file():
        return folder_world(Path(name).expanduser())
    raise SettingsError(
        [
            f"world {name!r} is unknown{nearest(name, WORLDS)}; expected {', '.join(WORLDS)}, or a folder with a {FILE}, "
            f"seen from {Path.cwd()}."
        ],
        where="the arguments",
    )
