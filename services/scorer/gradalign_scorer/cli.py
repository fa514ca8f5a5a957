"""`gradalign serve`: run a scorer."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NoReturn

from gradalign_scorer.docstrings import attribute_texts
from gradalign_scorer.settings import Settings, SettingsError, load_settings
from gradalign_scorer.telemetry.logs import configure_logging

__all__ = ["ServeCommand"]

_LOG = logging.getLogger(__name__)
_HELPS = {
    "host": "address to listen on (127.0.0.1; :: for IPv6 and IPv4); any other than loopback needs an API key",
    "port": "port to listen on (8000); 0 takes a free one",
    "redis_url": "store to use; without one an embedded store is started",
    "api_key": "accepted keys, which may do everything; prefer GRADALIGN_API_KEY, which `ps` does not show",
    "log_level": "debug, info (the default), warning or error",
}
_METAVARS = {
    "api_key": "KEY[,KEY]",
    "redis_url": "URL",
    "uds": "PATH",
    "data_dir": "DIR",
    **dict.fromkeys(("api_key_file", "tls_cert", "tls_key"), "FILE"),
}


class ServeCommand:
    """Runs one scorer process until SIGTERM or SIGINT."""

    help: ClassVar[str] = "run the scorer; every flag is also an environment variable GRADALIGN_..."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags; a flag wins over its environment variable."""
        helps = {**attribute_texts(Settings.__doc__ or ""), **_HELPS}
        for name in Settings.model_fields:
            flag = f"--{name.replace('_', '-')}"
            # Values are checked with those of the environment, so that an error names both ways to set them.
            if Settings.model_fields[name].annotation is bool:
                parser.add_argument(flag, action="store_true", default=None, help=helps[name])
            else:
                parser.add_argument(flag, metavar=_METAVARS.get(name, "VALUE"), help=helps[name].replace("%", "%%"))
        parser.add_argument(
            "--port-file", type=Path, metavar="PATH", help="write the base URL there once requests are answered"
        )

    def run(self, args: argparse.Namespace) -> int:
        """Serve; 0 after an orderly end.

        Raises:
            GradAlignError: a setting cannot be used.
        """
        flags = {name: getattr(args, name) for name in Settings.model_fields if hasattr(args, name)}
        settings = load_settings(flags)
        configure_logging(settings.log_level, settings.log_format)
        if settings.keys_travel_in_clear():
            _LOG.warning(
                "keys and sketches travel in clear to %s; give GRADALIGN_TLS_CERT (--tls-cert) and GRADALIGN_TLS_KEY "
                "(--tls-key), or let a proxy on this machine speak TLS and listen on 127.0.0.1",
                settings.host,
            )
        serve(settings, args.port_file)
        return 0


def serve(settings: Settings, port_file: Path | None = None) -> None:
    """Run a scorer until it is told to end.

    Raises:
        GradAlignError: a setting cannot be used.
    """
    from gradalign_scorer.access.tls import load_tls
    from gradalign_scorer.app import create_app
    from gradalign_scorer.server import Server, bound_sockets

    tls = load_tls(settings)
    with bound_sockets(settings) as sockets, _store_url(settings) as url:
        app = create_app(settings.model_copy(update={"redis_url": url}))
        Server(app, settings, tls, port_file).run(sockets)
    if app.state.context.engine.computing():
        _leave()


def _leave() -> NoReturn:
    """End the process at once, beside a computation that nobody waits for any more.

    The interpreter cannot finalize under a thread that comes back from a kernel: that aborts the process, which supervisors
    take for a crash.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def _store_url(settings: Settings) -> Iterator[str]:
    """The URL of the store, which is an embedded one where none is set."""
    if settings.redis_url is not None:
        yield settings.redis_url
        return
    from gradalign_scorer.store import EmbeddedServer

    if settings.data_dir is None:
        raise SettingsError(
            "the embedded store has no folder, since this user has no home (no HOME, no entry in the passwd file); give one "
            "that it may write to as GRADALIGN_DATA_DIR (--data-dir), or a server as GRADALIGN_REDIS_URL (--redis-url)."
        )
    with EmbeddedServer(settings.data_dir) as server:
        yield server.url
