"""TLS on the TCP port, from a certificate and its key in PEM files."""

from __future__ import annotations

import logging
import ssl
import stat
from pathlib import Path

from gradalign_scorer.settings import Settings, SettingsError

__all__ = ["ServerTls", "load_tls"]

_LOG = logging.getLogger(__name__)
_CERT, _KEY = "GRADALIGN_TLS_CERT (--tls-cert)", "GRADALIGN_TLS_KEY (--tls-key)"


class ServerTls:
    """A certificate with its key; connections made after a reload get the new one.

    Args:
        cert: PEM file with the certificate, intermediates behind it.
        key: PEM file with its private key.

    Raises:
        SettingsError: a file cannot be used.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self.context = self._load(_fresh())

    def reload(self) -> None:
        """Read both files again; the old certificate stays where they cannot be used."""
        try:
            self._load(_fresh())  # a try on the live context could leave it with a certificate and another's key
            self._load(self.context)
        except SettingsError as error:
            _LOG.error("the certificate stays as it was: %s", error)
        else:
            _LOG.info("read the certificate %s", self._cert)

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        _check_pem(_CERT, self._cert, "CERTIFICATE", "the server's certificate, intermediates behind it")
        text = _check_pem(_KEY, self._key, "PRIVATE KEY", "its private key")
        if self._key.stat().st_mode & stat.S_IRWXO:
            raise SettingsError(
                f"{_KEY} is {self._key}, which every user of this machine may open; run `chmod 600 {self._key}` (a "
                "Kubernetes secret volume: `defaultMode: 0440` with an fsGroup)."
            )
        if "ENCRYPTED" in text:
            raise SettingsError(
                f"{_KEY} is {self._key}, which is encrypted; decrypt it with `openssl pkey -in {self._key} -out PLAIN` into "
                "a file of mode 600."
            )
        try:
            context.load_cert_chain(self._cert, self._key)
        except ssl.SSLError as error:
            mismatch = error.reason == "KEY_VALUES_MISMATCH"
            fault = "are not of one pair" if mismatch else f"cannot be used ({error.reason or error})"
            raise SettingsError(
                f"{_CERT} {self._cert} and {_KEY} {self._key} {fault}; give a certificate and the key it was made for."
            ) from None
        return context


def load_tls(settings: Settings) -> ServerTls | None:
    """What the settings ask for; None for plain HTTP.

    Raises:
        SettingsError: a file cannot be used.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return ServerTls(settings.tls_cert, settings.tls_key)


def _fresh() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _check_pem(name: str, path: Path, kind: str, expected: str) -> str:
    try:
        text = path.read_text(encoding="latin-1")
    except OSError as error:
        raise SettingsError(
            f"{name} is {path}, which cannot be read ({error.strerror or error}); give a file with {expected}."
        ) from None
    if f"{kind}-----" not in text:
        raise SettingsError(f"{name} is {path}, which holds no PEM block {kind}; give a file with {expected}.")
    return text
