"""Whom a client believes to be the scorer."""

from __future__ import annotations

import os
import ssl

from gradalign.errors import InvalidValue

__all__ = ["distrust_advice", "trust_of"]


def trust_of(base_url: str, ca_file: str | os.PathLike[str] | None) -> ssl.SSLContext | bool:
    """What verifies the server's certificate: an authority of one's own, or (True) the public ones.

    Args:
        base_url: of the scorer.
        ca_file: PEM file of the authority; `GRADALIGN_CA_FILE` from the environment where None.

    Raises:
        InvalidValue: the file cannot be used, or is given for a URL that does not speak TLS.
    """
    secure = base_url.startswith("https://")
    if ca_file is not None and not secure:
        raise InvalidValue(
            f"ca_file is {os.fspath(ca_file)!r} and the scorer's URL is {base_url!r}, where nothing is verified; give an "
            "https:// URL, or no ca_file.",
            param="ca_file",
        )
    path = ca_file or os.environ.get("GRADALIGN_CA_FILE")
    if not path or not secure:
        return True
    try:
        return ssl.create_default_context(cafile=os.fspath(path))
    except (OSError, ssl.SSLError) as error:
        raise InvalidValue(
            f"ca_file (GRADALIGN_CA_FILE) is {os.fspath(path)!r}, which cannot be used ({error.strerror or error}); give a "
            "PEM file with the certificate of the authority that signed the scorer's.",
            param="ca_file",
        ) from None


def distrust_advice(error: Exception) -> str | None:
    """What to do about a failure to verify the server; None for a failure of another kind."""
    if "CERTIFICATE_VERIFY_FAILED" not in str(error):
        return None
    return (
        "The scorer's certificate is not trusted: give the PEM file of the authority that signed it as ca_file= or "
        "GRADALIGN_CA_FILE, and call the scorer by a name that its certificate holds."
    )
