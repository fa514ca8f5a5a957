"""`gradalign rank`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.console import Console

from gradalign.errors import GradAlignError
from gradalign.wire.matrix import SENT_DTYPES
from gradalign.wire.messages import SKETCH_STRATEGIES

if TYPE_CHECKING:
    from gradalign_trainer.datasets.sources.remote import Source
    from gradalign_trainer.rank.steps.report import RankReport
    from gradalign_trainer.rank.steps.settings import RankSettings

__all__ = ["RankCommand"]


class RankCommand:
    """Ranks problems by files of scored responses, as the reference implementation writes them."""

    help: ClassVar[str] = "rank problems by files of scored responses, in the reference implementation's formats"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        add = parser.add_argument
        add("--model", required=True, metavar="PATH", help="folder or hub id of the policy that gave the responses")
        add(
            "--train",
            required=True,
            type=_source,
            metavar="FILE",
            help="scored responses: JSON list, JSONL or Parquet, or the URL of one",
        )
        add("--validation", type=_source, metavar="FILE", help="the same of the trusted problems")
        add(
            "--out",
            required=True,
            type=Path,
            metavar="FILE",
            help="similarities, JSONL; pass rates are written beside it",
        )
        add("--strategy", default="cosine", choices=SKETCH_STRATEGIES, help="the scorer's rule (cosine)")
        add("--select", type=count, metavar="N", help="also write the best N problems; needs --problems")
        add("--problems", type=_source, metavar="FILE", help="the candidates, verl's JSONL or Parquet")
        add(
            "--duplicates",
            default="refuse",
            choices=("refuse", "drop"),
            help="problems that repeat an index: drop keeps the first (refuse)",
        )
        add("--selected", type=Path, metavar="FOLDER", help="of the selected problems ('selected' beside --out)")
        add("--url", help="use this scorer; without it one is started, with an embedded store")
        add("--sketch-dtype", default="float32", choices=SENT_DTYPES, help="that sketches travel to it as (float32)")
        add("--exact", action="store_true", help="full gradients, no projection; --normalization is then reference")
        add("--normalization", choices=("group", "reference"), help="how token terms are added up (group)")
        add("--mini-batch", type=count, default=8, metavar="N", help="of --normalization reference (8)")
        add("--ranks", type=count, default=1, metavar="N", help="processes that the reference ran on (1)")
        add("--normalize-advantages", action="store_true", help="divide by the group's standard deviation")
        add("--rows-per-backward", type=count, default=32, metavar="N", help="responses at once; bounds memory (32)")
        add("--max-length", type=count, default=4096, metavar="N", help="tokens of prompt and response (4096)")
        add("--dim", type=count, default=8192, help="buckets of a sketch (8192)")
        add("--seed", type=int, default=0, help="of the projection (0)")
        add("--device", default="auto", help="auto, cpu, cuda (auto)")
        add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the model (float32)")
        add("--threads", type=count, metavar="N", help="of a process on a CPU (all cores; of a worker 1)")
        add(
            "--ray",
            nargs="?",
            const="",
            metavar="ADDRESS",
            help="share the work among actors of this Ray cluster; without an address, of one started here",
        )
        add(
            "--workers",
            type=count,
            metavar="N",
            help="actors of Ray (one a GPU; without GPUs, one for --threads cores)",
        )
        add("--groups-per-task", type=count, default=16, metavar="N", help="problems that a worker takes at once (16)")
        add("--resume", action="store_true", help="go on where an interrupted ranking stopped")

    def run(self, args: argparse.Namespace) -> int:
        """Rank; 0 when the files are written.

        Raises:
            GradAlignError: files, settings or scorer do not fit.
        """
        import logging

        from gradalign_trainer.reporting.console import log_to

        console = Console(stderr=True)
        log_to(console, logging.INFO)
        report = _ranked(args)
        for line in _lines(report) if report else ():
            Console().print(line, highlight=False, soft_wrap=True)
        return 0


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}; expected at least 1")
    return value


def _source(text: str) -> Source:
    from gradalign_trainer.datasets.sources.remote import source

    return source(text)


def _ranked(args: argparse.Namespace) -> RankReport | None:
    """What the ranking did; None where another process of it tells."""
    if args.workers is not None and args.ray is None:
        raise GradAlignError("--workers was given without --ray; it counts the actors of Ray.")
    from gradalign_trainer.rank.distributed.ranks import Ranks, by_torchrun
    from gradalign_trainer.rank.run import run_ranking
    from gradalign_trainer.reporting.progress import show_progress

    settings, launched = _settings(args), by_torchrun()
    if launched and args.ray is not None:
        raise GradAlignError(
            "--ray was given under torchrun; expected one of them to share the work. Run it by python."
        )
    if not launched and args.ray is None:
        return run_ranking(settings, progress=show_progress)
    from gradalign_trainer.rank.distributed.actors import RayWorkers
    from gradalign_trainer.rank.distributed.run import Workers, run_shared

    threads = settings.threads or 1
    settings = replace(settings, threads=threads)
    workers: Workers = Ranks(settings, threads) if launched else RayWorkers(settings, args.ray, args.workers, threads)
    return run_shared(settings, workers, groups_per_task=args.groups_per_task, progress=show_progress)


def _settings(args: argparse.Namespace) -> RankSettings:
    from gradalign_trainer.rank.steps.gradient import Rule
    from gradalign_trainer.rank.steps.settings import RankSettings

    name = args.normalization or ("reference" if args.exact else "group")
    rule = Rule(name, args.rows_per_backward, args.mini_batch, args.ranks)
    taken = (
        "model",
        "train",
        "validation",
        "out",
        "strategy",
        "select",
        "problems",
        "duplicates",
        "selected",
        "url",
        "sketch_dtype",
        "exact",
        "dim",
    )
    named = {key: getattr(args, key) for key in (*taken, "seed", "device", "dtype", "max_length", "threads", "resume")}
    return RankSettings(**named, rule=rule, normalize=args.normalize_advantages)


def _lines(report: RankReport) -> list[str]:
    lines = [
        f"{report.groups} groups ranked, {report.no_signal} without a signal; {report.measured} gradients taken now; "
        f"{report.bad} bad records, {report.left_out} groups left out"
    ]
    if report.coherence is not None:
        lines.append(f"validation coherence {report.coherence:.3f}")
    if report.spearman is not None:
        lines.append(f"Spearman of the sketch with the exact alignments {report.spearman:.3f}")
    elif report.reliability is not None:
        advice = f"; --dim {report.advised_dim} would give 0.95" if report.advised_dim else ""
        lines.append(f"reliability {report.reliability:.3f}{advice}")
    if report.selected:
        lines.append(f"{len(report.selected)} problems selected")
    return lines + [f"wrote {file}" for file in report.files]
