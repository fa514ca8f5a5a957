"""`gradalign serve`: run a scorer."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from gradalign_scorer.settings import Settings, load_settings

__all__ = ["ServeCommand"]


class ServeCommand:
    """Runs one scorer process until SIGTERM or SIGINT."""

    help: ClassVar[str] = "run the scorer; every flag is also an environment variable GRADALIGN_..."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags; a flag wins over its environment variable."""
        add = parser.add_argument
        add("--host", help="address to listen on (127.0.0.1); any other than loopback needs an API key")
        add("--port", type=int, help="port to listen on (8000); 0 takes a free one")
        add("--uds", type=Path, metavar="PATH", help="also listen on this Unix socket, for trainers of this user")
        add("--redis-url", metavar="URL", help="store to use; without one an embedded store is started")
        add("--data-dir", type=Path, metavar="DIR", help="where the embedded store keeps its data")
        add("--device", help="auto (CUDA where there is one), cpu, cuda or cuda:N")
        add("--api-key", metavar="KEY[,KEY]", help="accepted keys; prefer GRADALIGN_API_KEY, which `ps` does not show")
        add("--insecure", action="store_true", default=None, help="listen on any address without an API key")
        add("--log-level", choices=("debug", "info", "warning", "error"), help="info by default")
        add("--port-file", type=Path, metavar="PATH", help="write http://host:port there once requests are answered")

    def run(self, args: argparse.Namespace) -> int:
        """Serve; 0 after an orderly end.

        Raises:
            GradAlignError: a setting cannot be used.
        """
        flags = {name: getattr(args, name) for name in Settings.model_fields if hasattr(args, name)}
        settings = load_settings(flags)
        logging.basicConfig(
            level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
        )
        serve(settings, args.port_file)
        return 0


def serve(settings: Settings, port_file: Path | None = None) -> None:
    """Run a scorer until it is told to end.

    Raises:
        GradAlignError: a setting cannot be used.
    """
    from gradalign_scorer.app import create_app
    from gradalign_scorer.server import Server, bound_sockets

    with bound_sockets(settings) as sockets, _store_url(settings) as url:
        app = create_app(settings.model_copy(update={"redis_url": url}))
        Server(app, settings, port_file).run(sockets)


@contextmanager
def _store_url(settings: Settings) -> Iterator[str]:
    """The URL of the store, which is an embedded one where none is set."""
    if settings.redis_url is not None:
        yield settings.redis_url
        return
    from gradalign_scorer.store import EmbeddedServer

    with EmbeddedServer(settings.data_dir) as server:
        yield server.url
