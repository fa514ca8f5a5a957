"""`gradalign COMMAND`: one console script; the scorer and the trainer add their commands by entry points.

A command is a class in the entry point group `gradalign.commands` with an attribute `help` and the methods
`configure(parser)` and `run(args) -> int` (the exit status).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Protocol

from gradalign import __version__
from gradalign.errors import GradAlignError

__all__ = ["Command", "main"]


class Command(Protocol):
    """What an entry point of the group `gradalign.commands` loads to."""

    help: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command; the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (default: the process's arguments) names; the exit status."""
    parser = argparse.ArgumentParser(prog="gradalign", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"gradalign {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    missing: dict[str, str] = {}
    for point in sorted(entry_points(group="gradalign.commands"), key=lambda point: point.name):
        try:
            command: Command = point.load()()
        except ImportError as error:
            package = point.value.split(".")[0]
            # A command of the client's own package needs the extra of its own name.
            extra = point.name if package == "gradalign" else package.removeprefix("gradalign_")
            missing[point.name] = f"needs {error.name}: pip install 'gradalign[{extra}]'"
            subparsers.add_parser(point.name, help=missing[point.name], add_help=False).set_defaults(absent=point.name)
            continue
        subparser = subparsers.add_parser(point.name, help=command.help, description=command.help)
        command.configure(subparser)
        subparser.set_defaults(run=command.run)
    args, rest = parser.parse_known_args(argv)
    if hasattr(args, "absent"):
        parser.error(f"{args.absent} {missing[args.absent]}")
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return int(args.run(args))
    except GradAlignError as error:
        sys.stderr.write(f"gradalign: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
