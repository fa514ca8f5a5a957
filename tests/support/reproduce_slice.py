"""A slice of `gradalign reproduce` that takes seconds: two rounds of small runs on base models that know next to nothing.

python tests/support/reproduce_slice.py FOLDER SCORER_URL MODELS      # an empty URL starts a scorer
"""

import sys
import zlib
from pathlib import Path

from rich.console import Console

from gradalign_trainer.reproduce.grid.cells import Recipe
from gradalign_trainer.reproduce.grid.grid import GridSettings, run_grid
from gradalign_trainer.worlds.builtin import ArithmeticWorld

METHODS = ("random", "cosine", "dapo", "full+val", "oracle")
SMALL = {
    "reward": "reproduce_slice:graded",
    "rounds": 2,
    "evaluate_every": 1,
    "pool_size": 32,
    "batch_problems": 8,
    "validation_problems": 8,
    "validation_rollouts": 4,
    "batch_validation": 0,
    "dim": 512,
}


def graded(problem, completion):
    """Differs wherever completions do, so that validation has a signal; every other problem of the pool has none."""
    mark = zlib.crc32(f"{problem.problem_id} {completion}".encode()) / 2**32
    return mark if problem.source.startswith("validation") or int(problem.problem_id[-1], 16) % 2 else 1.0


def slice_of(folder, url, models, **changes):
    """The settings of the slice, base models in the folder `models`; `changes` go into every run."""
    world = ArithmeticWorld(base_steps=60)
    recipe = Recipe(world=world, long=False, changes={**SMALL, "model_cache": str(models), **changes})
    cells = {"regimes": ("misconception",), "methods": METHODS, "seeds": 1}
    return GridSettings(output=Path(folder), recipe=recipe, workers=1, scorer_url=url or None, **cells)


if __name__ == "__main__":
    run_grid(slice_of(*sys.argv[1:]), Console(stderr=True))
