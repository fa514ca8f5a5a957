"""`gradalign reproduce`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import ClassVar

from rich.console import Console

__all__ = ["ReproduceCommand"]

REGIMES = ("misconception", "inverted", "imbalance", "low-utility")
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
        add("--regime", nargs="+", metavar="NAME", help=f"regimes to run ({' '.join(REGIMES)})")
        add("--methods", nargs="+", metavar="NAME", help="methods to run (all)")
        add("--seeds", type=_positive, metavar="N", help="seeds 0 to N-1 (5)")
        add(
            "--budget",
            choices=("updates", "all"),
            help="updates: runs end at equal updates; all: they go on to equal rollouts and equal seconds (all)",
        )
        add("--quick", action="store_true", help=f"one seed, {len(QUICK_METHODS)} methods, equal updates: four minutes")
        add("--workers", type=_positive, default=2, metavar="N", help="cells at a time, each on one core (2)")
        add("--output", type=Path, help=f"folder of the results (runs/reproduce; {QUICK_OUTPUT} with --quick)")
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
        from gradalign_trainer.reproduce.grid.cells import Recipe
        from gradalign_trainer.reproduce.grid.grid import GridSettings, run_grid
        from gradalign_trainer.reproduce.grid.methods import METHODS
        from gradalign_trainer.reproduce.report.report import write_report
        from gradalign_trainer.settings import SettingsError, nearest
        from gradalign_trainer.worlds.regimes import REGIMES as KNOWN

        console = Console(stderr=True)
        log_to(console, logging.INFO)
        regimes, methods = args.regime or REGIMES, args.methods or (QUICK_METHODS if args.quick else tuple(METHODS))
        faults = [
            f"--{what}: {name!r} is unknown{nearest(name, valid)}; expected any of {', '.join(valid)}."
            for what, names, valid in (("regime", regimes, KNOWN), ("methods", methods, METHODS))
            for name in names
            if name not in valid
        ]
        if faults:
            raise SettingsError(faults, where="the arguments")
        settings = GridSettings(
            output=args.output or Path(QUICK_OUTPUT if args.quick else "runs/reproduce"),
            regimes=regimes,
            methods=methods,
            seeds=args.seeds or (1 if args.quick else 5),
            recipe=Recipe(long=(args.budget or ("updates" if args.quick else "all")) == "all"),
            workers=args.workers,
            scorer_url=args.scorer_url,
        )
        if not args.report_only:
            run_grid(settings, console)
        for path in write_report(settings.output, args.page):
            Console().print(path, highlight=False, soft_wrap=True)
        return 0
