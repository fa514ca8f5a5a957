"""`gradalign reproduce`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.console import Console

if TYPE_CHECKING:
    from gradalign_trainer.reproduce.grid.grid import GridSettings
    from gradalign_trainer.world import World

__all__ = ["ReproduceCommand"]

QUICK_METHODS = ("random", "full", "accgreedy", "learnalign", "cosine", "oracle")
QUICK_OUTPUT = "runs/reproduce-quick"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number from 1")
    return int(text)


class ReproduceCommand:
    """Measures the paper's claims."""

    help: ClassVar[str] = "measure all methods in all regimes over several seeds, and write tables and plots"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        add = parser.add_argument
        add(
            "--world",
            default="arithmetic",
            metavar="NAME",
            help="arithmetic, smollm2, or a folder with a world.toml (arithmetic): docs/smollm2.md",
        )
        add("--model", type=Path, metavar="FOLDER", help="of the model of smollm2 (fetched into the cache of models)")
        add("--device", default="cpu", help="that the runs compute on: cpu, cuda or cuda:N (cpu)")
        add(
            "--generation",
            choices=("transformers", "vllm"),
            help="who samples the rollouts; vllm where it is installed (transformers, or as world.toml has it)",
        )
        add("--regime", nargs="+", metavar="NAME", help="regimes to run (four of the world's)")
        add("--methods", nargs="+", metavar="NAME", help="methods to run (all)")
        add("--seeds", type=_positive, metavar="N", help="seeds 0 to N-1 (5; 3 in worlds of pretrained models)")
        add(
            "--budget",
            choices=("updates", "all"),
            help="updates: runs end at equal updates; all: they go on to equal rollouts and equal seconds (all; updates in "
            "worlds of pretrained models)",
        )
        add(
            "--updates",
            type=_positive,
            metavar="N",
            help="updates that methods are compared at; the results want a folder of their own (60; 30 in smollm2)",
        )
        add("--quick", action="store_true", help=f"one seed, {len(QUICK_METHODS)} methods, equal updates: four minutes")
        add("--workers", type=_positive, default=2, metavar="N", help="cells at a time, each on one core (2)")
        add(
            "--output",
            type=Path,
            help=f"folder of the results (runs/reproduce or runs/reproduce-WORLD; {QUICK_OUTPUT} with --quick)",
        )
        add("--scorer-url", metavar="URL", help="use this scorer; without it one is started, with an embedded store")
        add(
            "--page",
            type=Path,
            help="a Markdown page that gets the tables too, as docs/reproduction.md does",
        )
        add("--report-only", action="store_true", help="run nothing; write tables and plots of what is there")

    def run(self, args: argparse.Namespace) -> int:
        """Run the grid, then report on it; 0 when every cell has a result.

        Raises:
            GradAlignError: a name is unknown, a cell failed, or the results in the folder are of other settings.
        """
        from gradalign_trainer.reporting.console import log_to
        from gradalign_trainer.reproduce.grid.grid import run_grid
        from gradalign_trainer.reproduce.report.report import write_report

        console = Console(stderr=True)
        log_to(console, logging.INFO)
        settings = self._settings(args)
        if not args.report_only:
            run_grid(settings, console)
        for path in write_report(settings.output, args.page, settings.recipe.world):
            Console().print(path, highlight=False, soft_wrap=True)
        return 0

    def _settings(self, args: argparse.Namespace) -> GridSettings:
        from gradalign_trainer.reproduce.grid.cells import Recipe
        from gradalign_trainer.reproduce.grid.grid import GridSettings
        from gradalign_trainer.reproduce.grid.methods import METHODS
        from gradalign_trainer.settings import SettingsError
        from gradalign_trainer.world import at_updates

        world = _world(args.world, args.model)
        if args.updates is not None:
            world = at_updates(world, args.updates)
        arithmetic = args.world == "arithmetic"
        regimes, methods = args.regime or world.headline, args.methods or (QUICK_METHODS if args.quick else (*METHODS,))
        faults = [*_unknown("regime", regimes, world.regimes), *_unknown("methods", methods, METHODS)]
        if faults:
            raise SettingsError(faults, where="the arguments")
        short = args.quick or not arithmetic
        whole = Path("runs/reproduce" if arithmetic else f"runs/reproduce-{world.name}")
        return GridSettings(
            output=args.output or (Path(QUICK_OUTPUT) if args.quick and arithmetic else whole),
            regimes=regimes,
            methods=methods,
            seeds=args.seeds or (1 if args.quick else 5 if arithmetic else 3),
            recipe=Recipe(
                world=world,
                long=(args.budget or ("updates" if short else "all")) == "all",
                changes=_changes(args, world),
            ),
            workers=args.workers,
            scorer_url=args.scorer_url,
        )


def _changes(args: argparse.Namespace, world: World) -> dict[str, str]:
    """Settings of all runs that the arguments change: those of them that the world has so already decide nothing."""
    changes = {} if args.device == "cpu" else {"device": args.device}
    if args.generation not in (None, world.settings.get("generation", "transformers")):
        changes["generation"] = args.generation
    return changes


def _world(name: str, model: Path | None) -> World:
    """The world of the arguments; SettingsError where they name none, or a model for a world that has its own."""
    from gradalign_trainer.settings import SettingsError
    from gradalign_trainer.worlds.tasks.registry import world_of
    from gradalign_trainer.worlds.tasks.smollm2 import SmolLM2World

    world = world_of(name)
    if model is None:
        return world
    if not isinstance(world, SmolLM2World):
        raise SettingsError([f"--model is given with --world {name}, which has its own; expected --world smollm2."])
    if not (model / "config.json").is_file():
        raise SettingsError(
            [f"--model {model} holds no config.json; expected a model's folder, as gradalign fetch-model makes it."]
        )
    return SmolLM2World(model)


def _unknown(what: str, names: Sequence[str], valid: Mapping[str, object]) -> list[str]:
    from gradalign_trainer.settings import nearest

    return [
        f"--{what}: {name!r} is unknown{nearest(name, valid)}; expected any of {', '.join(valid)}."
        for name in names
        if name not in valid
    ]
