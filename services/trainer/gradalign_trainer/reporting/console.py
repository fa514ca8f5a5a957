"""What a command shows on its terminal: log lines beside the bars, and no bars but ours."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

__all__ = ["hush_weights", "log_to"]


def log_to(console: Console, level: int) -> None:
    """Log beside the bars on a terminal, as plain lines elsewhere.

    Args:
        console: where the bars are.
        level: from which on messages are shown.
    """
    handler: logging.Handler = logging.StreamHandler()
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True, format="%(message)s")
    hush_weights()
    for chatty in ("httpx", "httpcore", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def hush_weights() -> None:
    """Stop transformers from drawing bars over ours when it reads or writes weights; those of downloads stay."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
