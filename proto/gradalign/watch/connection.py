"""Where the commands that only look find their scorer: `gradalign status` and `gradalign top`."""

from __future__ import annotations

import argparse
import os
import time

from gradalign.client.client import Client

__all__ = ["add_scorer_arguments", "ago", "scorer_client", "validation_age"]

DEFAULT_URL = "http://127.0.0.1:8000"
_ALL = "all"


def add_scorer_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run and the scorer's URL; the API key comes from the environment, since `ps` shows arguments."""
    url = os.environ.get("GRADALIGN_URL") or DEFAULT_URL
    parser.add_argument("run_id", nargs="?", metavar="RUN", help="the run; all runs without it")
    parser.add_argument(
        "--url",
        default=url,
        help=f"of the scorer, or of several over one store, separated by commas (GRADALIGN_URL; {DEFAULT_URL}). An API key "
        "goes in GRADALIGN_API_KEY",
    )


def scorer_client(args: argparse.Namespace, *, timeout: float = 10.0) -> Client:
    """A client that gives up soon: whoever looks can look again.

    Raises:
        InvalidValue: the run's name or the URL cannot be one.
    """
    urls = [url.strip() for url in args.url.split(",") if url.strip()]
    return Client(urls or DEFAULT_URL, run_id=args.run_id or _ALL, timeout=timeout, retries=1)


def ago(at: float) -> str:
    """How long a time in Unix seconds is past, in words."""
    seconds = max(time.time() - at, 0.0)
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name} ago"
    return f"{seconds:.0f} s ago"


def validation_age(policy_version: int, validation_policy_version: int | None) -> int | None:
    """Policy versions since the validation gradient was taken; None before the first."""
    return None if validation_policy_version is None else policy_version - validation_policy_version
