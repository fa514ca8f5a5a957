"""What several files here start from."""

import pytest

from gradalign import Client


@pytest.fixture(scope="module")
def http(scorer):
    with scorer.http() as client:
        yield client


@pytest.fixture
def client(scorer, run_id):
    with Client(scorer.url, run_id=run_id, retries=0) as client:
        yield client


@pytest.fixture
def run(client, problem_ids, sketches, projection):
    """A run at policy version 5, epoch 2, validation version 1."""
    client._calls.epoch = 2
    client.refresh_validation(problem_ids, sketches, policy_version=5, projection=projection)
    client.score(problem_ids, sketches, policy_version=5, projection=projection)
    client._calls.epoch = None
    return client
