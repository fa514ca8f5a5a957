"""Who samples the rollouts of a grid: as the world has it, or as the arguments say; and what that does to its results."""

import argparse
from pathlib import Path

import pytest
from toyworld import toy_world

from gradalign_trainer.reproduce.command import ReproduceCommand
from gradalign_trainer.reproduce.grid.cells import Cell, Recipe

CELL = Cell(0, "inverted", "random")


@pytest.fixture
def generation(tmp_path):
    """Of the runs of `gradalign reproduce` in a world whose file ends with a line, and the recipe."""

    def read(line, *more):
        folder = toy_world(tmp_path / "toy")
        with (folder / "world.toml").open("a") as file:
            file.write(f"{line}\n")
        parser, command = argparse.ArgumentParser(), ReproduceCommand()
        command.configure(parser)
        recipe = command._settings(parser.parse_args(["--world", str(folder), *more])).recipe
        return recipe.config(CELL, Path("base"), tmp_path / "out", None).generation, recipe

    return read


@pytest.mark.parametrize(
    ("line", "more", "expected"),
    [
        ("", (), "transformers"),
        ("", ("--generation", "vllm"), "vllm"),
        ('generation = "vllm"', (), "vllm"),
        ('generation = "vllm"', ("--generation", "transformers"), "transformers"),
    ],
)
def test_arguments_go_before_the_world(generation, line, more, expected):
    assert generation(line, *more)[0] == expected


def test_saying_what_is_so_anyway_leaves_results_valid(generation):
    plain, said, other = (generation("", *more)[1].digest(CELL) for more in ((), *asked("transformers", "vllm")))
    assert plain == said != other


def asked(*names):
    return (("--generation", name) for name in names)


def test_the_share_of_memory_reaches_the_runs_and_leaves_results_valid():
    by_vllm = [Recipe(changes={"generation": "vllm", "vllm_memory": share}) for share in (0.3, 0.5)]
    assert by_vllm[0].digest(CELL) == by_vllm[1].digest(CELL)
    assert by_vllm[1].config(CELL, Path("base"), Path("out"), None).vllm_memory == 0.5
