"""`gradalign top`: runs in the terminal, for login nodes without a browser. Needs rich: `pip install 'gradalign[top]'`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any, ClassVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gradalign.client.client import Client
from gradalign.errors import UnavailableError
from gradalign.watch.connection import add_scorer_arguments, ago, scorer_client, validation_age
from gradalign.wire.replies import ProblemState, RoundRecord, RunState

__all__ = ["TopCommand"]

_ROUNDS = 200
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 48


class TopCommand:
    """Shows all runs, or one run, anew every few seconds; once where the output is no terminal."""

    help: ClassVar[str] = "watch all runs, or one, in the terminal"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        add_scorer_arguments(parser)
        parser.add_argument("--interval", type=_seconds, default=2.0, help="seconds between looks (2)")
        parser.add_argument("--once", action="store_true", help="look once, as where the output is no terminal")

    def run(self, args: argparse.Namespace) -> int:
        """Watch until interrupted.

        Raises:
            GradAlignError: the first look fails, or the scorer refuses.
        """
        console = Console()
        with scorer_client(args) as client:
            shown = _look(client, args.run_id)
            if args.once or not console.is_terminal:
                console.print(shown)
                return 0
            try:
                with Live(shown, console=console, screen=True, auto_refresh=False) as live:
                    while True:
                        time.sleep(args.interval)
                        try:
                            shown = note = _look(client, args.run_id)
                        except UnavailableError as error:
                            note = Group(Text(f"{error} Trying again.", style="bold red"), shown)
                        live.update(note, refresh=True)
            except KeyboardInterrupt:
                return 0


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 3600")
    return value


def _look(client: Client, run_id: str | None) -> RenderableType:
    if run_id is None:
        return _runs(client.runs())
    state = client.run()
    rounds = client.rounds(after=max(state.rounds - _ROUNDS, 0), limit=_ROUNDS)
    outline = client.outline(ends=5)
    return Group(
        _heading(state),
        *_warnings(state),
        _facts(state, rounds),
        _table("first in the ranking", outline.best),
        _table("last in the ranking", outline.worst),
    )


def _runs(states: Sequence[RunState]) -> RenderableType:
    if not states:
        return Text("no runs yet: a run begins with its first request")
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("policy", "age", "coherence", "reliability", "problems", "rounds", "last round"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("warnings")
    for state in states:
        age = validation_age(state.policy_version, state.validation_policy_version)
        trust = state.rollout_reliability if state.kind == "products" else state.reliability
        cells = [state.policy_version, age, state.coherence, trust, state.problems, state.rounds]
        words = "; ".join(warning.message for warning in state.warnings)
        table.add_row(
            _plain(state.run_id),
            *map(_shown, cells),
            Text(ago(state.updated_at)),
            Text(words or "none", style="yellow" if words else "dim"),
        )
    return table


def _heading(state: RunState) -> Text:
    kinds = {"products": ", by products", "pass_rates": ", by pass rates"}
    dim = f", k = {state.projection['dim']}" if state.projection else kinds.get(state.kind, "")
    facts = f"  policy {state.policy_version}, strategy {state.strategy}{dim}, {state.problems} problems, "
    return Text.assemble((state.run_id, "bold"), facts, f"{state.rounds} rounds, the last {ago(state.updated_at)}")


def _warnings(state: RunState) -> list[Text]:
    return [Text(f"! {warning.message}", style="yellow") for warning in state.warnings]


def _facts(state: RunState, rounds: Sequence[RoundRecord]) -> Table:
    scores = [record for record in rounds if record.kind == "score"]
    medians = [r.summary["alignment_quantiles"][3] for r in scores if r.summary.get("alignment_quantiles")]
    chosen = [r.summary["selected_alignment"] for r in scores if r.summary.get("selected_alignment") is not None]
    silent = [r.summary.get("no_signal", 0) / r.problems for r in scores if r.problems]
    rates = [r.summary["mean_pass_rate"] for r in scores if r.summary.get("mean_pass_rate") is not None]
    tenths = [sum(column) for column in zip(*_tenths(rounds), strict=True)]
    advised = scores[-1].summary.get("advised_dim") if scores else None
    table = Table(box=None, show_header=False, pad_edge=False)
    of_alignments = (
        ("median alignment", medians, _last(medians)),
        ("alignment of the selected", chosen, _last(chosen)),
    )
    for label, values, last in (
        *(of_alignments if state.kind != "pass_rates" else ()),
        ("without a signal", silent, _last(silent, "{:.0%}")),
        ("mean pass rate", rates, _last(rates, "{:.0%}")),
        ("selected, best tenth first", tenths, f"{sum(tenths)} in all" if tenths else "–"),
    ):
        table.add_row(Text(label), Text(last), Text(_sparkline(values[-_COLUMNS:]), style="cyan"))
    if state.kind == "pass_rates":
        return table
    age = validation_age(state.policy_version, state.validation_policy_version)
    of = f"{state.validation_problems} problems, {_shown(age)} policy versions old"
    table.add_row(Text("validation coherence"), _shown(state.coherence), Text(of))
    if state.kind == "products":
        table.add_row(Text("products over |v|"), _shown(state.products_quotient), Text("1 where they are exact"))
        table.add_row(Text("reliability"), _shown(state.rollout_reliability), Text("over fresh rollouts"))
    else:
        table.add_row(
            Text("reliability"), _shown(state.reliability), Text(f"k = {advised} would do" if advised else "")
        )
    return table


def _tenths(rounds: Sequence[RoundRecord]) -> list[list[int]]:
    return [record.summary["selected_tenths"] for record in rounds if record.summary.get("selected_tenths")]


def _table(title: str, rows: Sequence[ProblemState]) -> RenderableType:
    table = Table(box=None, pad_edge=False, title=f"\n{title}", title_justify="left", title_style="bold")
    table.add_column("problem", max_width=40, no_wrap=True)
    for name in ("alignment", "priority", "pass rate", "scored", "selected"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [row.alignment, row.priority, row.pass_rate, row.times_scored, row.times_selected]
        table.add_row(_plain(row.problem_id), *map(_shown, cells))
    return table if rows else Text(f"\n{title}: no problem was scored yet")


def _plain(name: str) -> Text:
    """A name that others chose, without what a terminal would act on."""
    return Text("".join(c if c.isprintable() else "�" for c in name))


def _shown(value: Any) -> Text:
    if value is None:
        return Text("–")
    return Text(f"{value:.3f}" if isinstance(value, float) else f"{value:,}")


def _last(values: Sequence[float], form: str = "{:.3f}") -> str:
    return form.format(values[-1]) if values else "–"


def _sparkline(values: Sequence[float]) -> str:
    """Values as bars between the least and the most of them."""
    if not values:
        return ""
    low, width = min(values), (max(values) - min(values)) or 1.0
    return "".join(_BARS[min(int((value - low) / width * len(_BARS)), len(_BARS) - 1)] for value in values)
