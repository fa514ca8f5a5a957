"""What several files here start from."""

import pytest
from productruns import refresh

from gradalign import (
    Client,
)


@pytest.fixture
def client(scorer, run_id):
    with Client(scorer.url, run_id=run_id, retries=0) as client:
        yield client


@pytest.fixture
def run(client):
    """A run of products at policy version 1, validation version 1."""
    refresh(client)
    return client
