"""A certificate authority of the tests' own, made with openssl; and a relay that speaks TLS for a server which does not."""

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(*arguments: object) -> None:
    """Run it; raises where it fails."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cert = folder / "ca.pem"
        openssl(
            "req", "-x509", *KEY, "-keyout", folder / "ca.key", "-out", self.cert, "-subj", "/CN=our CA", "-days", 2
        )

    def sign(self, name: str) -> tuple[Path, Path]:
        """Paths of a new certificate for 127.0.0.1, and of its key."""
        cert, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        extensions = self.folder / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl("req", *KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signer = ["-CA", self.cert, "-CAkey", self.folder / "ca.key", "-CAcreateserial", "-extfile", extensions]
        openssl("x509", "-req", "-in", request, *signer, "-out", cert, "-days", 2)
        key.chmod(0o600)
        return cert, key


@contextlib.contextmanager
def tls_relay(port: int, target: int, cert: Path, key: Path) -> Iterator[None]:
    """Listens on a port and hands on to another, both of this machine; whoever begins with TLS is spoken to by TLS.

    Args:
        port: to listen on.
        target: where the server is.
        cert: certificate to show.
        key: its private key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listener = socket.create_server(("127.0.0.1", port))
    open_sockets: list[socket.socket] = [listener]

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near = listener.accept()[0]
                open_sockets.append(near)
                threading.Thread(target=serve, args=(near,), daemon=True).start()

    def serve(near: socket.socket) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", target)) as far:
            if near.recv(1, socket.MSG_PEEK) == b"\x16":  # a TLS handshake begins so, and no command of Redis
                near = context.wrap_socket(near, server_side=True)
                open_sockets.append(near)
            threading.Thread(target=pump, args=(far, near), daemon=True).start()
            pump(near, far)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                sink.sendall(content)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        for each in open_sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
