"""Packages that tests of adapters need: where one is missing they skip, and in `make test-adapters` they fail."""

import importlib
import os

import pytest


def needs(package):
    """The package imported; call it at the top of a test module."""
    if "GRADALIGN_TEST_ENVIRONMENT" in os.environ:
        return importlib.import_module(package)
    return pytest.importorskip(package, reason=f"{package} is not installed here; make test-adapters installs it")
