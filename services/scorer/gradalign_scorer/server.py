"""uvicorn, with the sockets, signals and time limits that a scorer needs."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from gradalign_scorer.access.tls import ServerTls
from gradalign_scorer.hosts import authority, bare
from gradalign_scorer.http.backpressure import Deliveries
from gradalign_scorer.http.directbody import DirectBodyProtocol
from gradalign_scorer.routes.context import Context
from gradalign_scorer.settings import Settings, SettingsError

__all__ = ["Server", "bound_sockets"]

_LOG = logging.getLogger(__name__)
_BACKLOG = 2048
_REPLY_SHARE = 8
"""Replies that clients do not take may hold an eighth of what bodies may."""


class Server(uvicorn.Server):
    """Serves one app until SIGTERM or SIGINT, then drains.

    After SIGTERM /readyz answers 503 for `drain_seconds` while requests are still taken, so that a load balancer can
    look away; then no connection is accepted, and what was admitted is finished within `grace_seconds`. SIGINT skips the
    wait. SIGHUP has the key file and the certificate read again, where there are any.

    Args:
        app: made by `create_app`.
        settings: of the app.
        tls: for the TCP socket; None for plain HTTP. A Unix socket never leaves the machine, and is always plain.
        port_file: where to write the base URL once requests are answered.
    """

    def __init__(
        self, app: FastAPI, settings: Settings, tls: ServerTls | None = None, port_file: Path | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                # Above the client's 30 s, so that the side that sends is the side that gives a connection up.
                timeout_keep_alive=75,
                # Behind the moment when clients that hold on are hung up on: for what does not end even then.
                timeout_graceful_shutdown=math.ceil(settings.grace_seconds) + 1,
                server_header=False,
                ws="none",
            )
        )
        self.config.load()
        deliveries = Deliveries(settings.body_seconds, settings.max_admitted_bytes // _REPLY_SHARE)
        self.config.http_protocol_class = partial(  # type: ignore[assignment]
            DirectBodyProtocol, head_seconds=settings.body_seconds, deliveries=deliveries
        )
        self.config.ssl = tls.context if tls else None
        self._tls = tls
        self._context: Context = app.state.context
        self._settings = settings
        self._port_file = port_file
        self._exit_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begin to drain; a second signal ends the wait, a third one everything."""
        self._context.draining = True
        if sig == signal.SIGTERM and self._exit_at is None and not self.should_exit:
            self._exit_at = time.monotonic() + self._settings.drain_seconds
        elif self.should_exit:
            self.force_exit = True
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; asked ten times a second."""
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the app, listen, and say where."""
        listening = sockets or []
        await super().startup([sock for sock in listening if sock.family != socket.AF_UNIX])
        for sock in listening:
            if sock.family == socket.AF_UNIX:
                self.servers.append(await asyncio.get_running_loop().create_server(self._protocol, sock=sock))
        if self._tls or self._settings.api_key_file:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        addresses = [_address(sock, "https" if self._tls else "http") for sock in listening]
        _LOG.info("serving on %s", " and ".join(addresses))
        if self._port_file is not None and addresses:
            fresh = self._port_file.with_name(self._port_file.name + ".new")
            fresh.write_text(addresses[0] + "\n")
            fresh.replace(self._port_file)

    def _protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what was admitted; clients that stall, or do not take their reply, are hung up on when the grace ends."""
        end = asyncio.get_running_loop().call_later(self._settings.grace_seconds, self._hang_up)
        self._context.ends_at = time.monotonic() + self._settings.grace_seconds
        try:
            await super().shutdown(sockets)
        finally:
            end.cancel()

    def _hang_up(self) -> None:
        connections = list(self.server_state.connections)
        if connections:
            _LOG.warning("hung up on %d clients, which held on past the grace", len(connections))
        for connection in connections:
            connection.transport.abort()

    def _reload(self) -> None:
        self._context.keys.reload()
        if self._tls:
            self._tls.reload()


def _address(sock: socket.socket, scheme: str) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"{scheme}://{authority(name[0], name[1])}"


@contextmanager
def bound_sockets(settings: Settings) -> Iterator[list[socket.socket]]:
    """The sockets to listen on, the TCP one first; a Unix socket's file is removed at the end.

    Raises:
        SettingsError: an address cannot be taken.
    """
    _fill_standard_descriptors()
    sockets = [_bind_tcp(settings.host, settings.port)]
    try:
        if settings.uds is not None:
            sockets.append(_bind_unix(settings.uds))
        yield sockets
    finally:
        for sock in sockets:
            sock.close()
        if settings.uds is not None and len(sockets) > 1:
            settings.uds.unlink(missing_ok=True)


def _fill_standard_descriptors() -> None:
    """Open what a parent closed of stdin, stdout and stderr: uvloop never closes a listener that is descriptor 0."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _bind_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(bare(host), port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # :: takes IPv4 too, whatever the machine's default is
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {authority(host, port)} ({error.strerror or error}); give a free port as GRADALIGN_PORT "
            "(--port; 0 takes any), and an address of this machine as GRADALIGN_HOST (--host)."
        ) from None
    sock.listen(_BACKLOG)
    return sock


def _bind_unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The file's mode is set by the mask at birth: a chmod behind it would leave a moment in which anyone may connect.
    mask = os.umask(0o177)
    try:
        if _is_dead_socket(path):
            path.unlink()
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise SettingsError(
            f"cannot listen on GRADALIGN_UDS (--uds) {path} ({error.strerror or error}); give a path of at most 107 bytes "
            "in a folder that this user may write to, which no other process listens on."
        ) from None
    finally:
        os.umask(mask)
    sock.listen(_BACKLOG)
    return sock


def _is_dead_socket(path: Path) -> bool:
    """Whether a process that is gone left its socket behind."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) != 0
