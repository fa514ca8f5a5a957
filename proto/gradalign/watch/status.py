"""`gradalign status`: how runs are, for scripts. Exit status 0: no warnings; 1: warnings; 2: no answer, or an error."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import ClassVar

from gradalign.errors import WireError
from gradalign.watch.connection import add_scorer_arguments, ago, scorer_client
from gradalign.wire.replies import RunState

__all__ = ["StatusCommand"]


class StatusCommand:
    """Prints each run with its warnings."""

    help: ClassVar[str] = "say how runs are; exit status 0 without warnings, 1 with, 2 where the scorer does not answer"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments."""
        add_scorer_arguments(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON object: status, and runs or error")

    def run(self, args: argparse.Namespace) -> int:
        """Ask and print; the exit status.

        Raises:
            GradAlignError: the scorer does not answer or refuses, unless it is to be told in JSON.
        """
        try:
            with scorer_client(args) as client:
                states = [client.run()] if args.run_id else client.runs()
        except WireError as error:
            if not args.json:
                raise
            sys.stdout.write(json.dumps({"status": "error", **error.to_wire()}) + "\n")
            return 2
        warned = any(state.warnings for state in states)
        if args.json:
            report = {"status": "warnings" if warned else "ok", "runs": [state.to_map() for state in states]}
            sys.stdout.write(json.dumps(report) + "\n")
        else:
            sys.stdout.write(_lines(states))
        return 1 if warned else 0


def _lines(states: Sequence[RunState]) -> str:
    if not states:
        return "no runs\n"
    width = max(len(state.run_id) for state in states)
    lines = []
    for state in states:
        word = "warnings" if state.warnings else "ok"
        facts = f"policy {state.policy_version}, {state.problems} problems, {state.rounds} rounds"
        lines.append(f"{state.run_id:<{width}}  {word:<8}  {facts}, the last {ago(state.updated_at)}")
        lines += [f"{'':<{width}}  - {warning.message}" for warning in state.warnings]
    return "\n".join(lines) + "\n"
