"""What the image's HEALTHCHECK runs: asks the scorer that the environment's GRADALIGN_* describe whether it is ready.

    python -m gradalign_scorer.healthcheck      # ends with 0 if it is, else with 1 and the reason

It reads the variables itself, since an image runs it every few seconds and the settings take longer to import than to ask.
"""

from __future__ import annotations

import os
import ssl
import sys
import urllib.request
from collections.abc import Mapping

from gradalign_scorer.hosts import authority, reachable

__all__ = ["fault", "ready_url"]

_SECONDS = 4.0


def ready_url(environment: Mapping[str, str]) -> str:
    """Where that scorer answers /readyz."""
    scheme = "https" if environment.get("GRADALIGN_TLS_CERT") else "http"
    host = reachable(environment.get("GRADALIGN_HOST") or "127.0.0.1")
    return f"{scheme}://{authority(host, environment.get('GRADALIGN_PORT') or '8000')}/readyz"


def fault(environment: Mapping[str, str]) -> str | None:
    """Why it is not ready; None if it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # It talks to itself, under a name that its certificate need not have.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with direct.open(ready_url(environment), timeout=_SECONDS):
            return None
    except (OSError, ValueError) as error:
        return f"{ready_url(environment)}: {error}"


if __name__ == "__main__":
    sys.exit(fault(os.environ))
