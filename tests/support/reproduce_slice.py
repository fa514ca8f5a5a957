"""A slice of `gradalign reproduce` that takes seconds: two rounds of small runs on base models that know next to nothing.

python tests/support/reproduce_slice.py FOLDER SCORER_URL MODELS      # an empty URL starts a scorer
"""

import sys
from pathlib import Path

from rich.console import Console

from gradalign_trainer.reproduce.cells import Recipe
from gradalign_trainer.reproduce.grid import GridSettings, run_grid

METHODS = ("random", "cosine", "dapo", "full+val", "oracle")
SMALL = {
    "reward": "reproduce_slice:first_digit",
    "rounds": 2,
    "evaluate_every": 1,
    "pool_size": 32,
    "batch_problems": 8,
    "validation_problems": 8,
    "validation_rollouts": 4,
    "batch_validation": 0,
    "dim": 512,
}


def first_digit(problem, completion):
    """A reward that a policy in its first steps earns now and then."""
    return float(completion[:1] == problem.answer[0])


def slice_of(folder, url, models, **changes):
    """The settings of the slice, base models in the folder `models`; `changes` go into every run."""
    recipe = Recipe(long=False, changes={**SMALL, "model_cache": str(models), **changes}, base_steps=60)
    cells = {"regimes": ("misconception",), "methods": METHODS, "seeds": 1}
    return GridSettings(output=Path(folder), recipe=recipe, workers=1, scorer_url=url or None, **cells)


if __name__ == "__main__":
    run_grid(slice_of(*sys.argv[1:]), Console(stderr=True))
