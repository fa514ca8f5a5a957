"""Whether verl 0.9 is installed; told by its metadata, since importing it takes seconds and warns."""

import os
from importlib.metadata import PackageNotFoundError, version

import pytest


def needs_verl():
    """Call it at the top of a test module: skips where verl is missing or older, and fails in `make test-adapters`."""
    try:
        found = version("verl")
    except PackageNotFoundError:
        found = "none"
    if not found.startswith("0.9."):
        reason = f"verl 0.9 is needed, {found} is installed here; docs/adapters-verl.md says how to install it"
        if "GRADALIGN_TEST_ENVIRONMENT" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason, allow_module_level=True)
