"""What the tests of recipes start from: the environment that a recipe reads, at a real scorer."""

import pytest


@pytest.fixture
def environment(monkeypatch, scorer, run_id):
    """Sets the variables; another address may be given."""

    def give(url=scorer.url, **named):
        for name, value in {"scorer_url": url, "run_id": run_id, "retries": 0, **named}.items():
            monkeypatch.setenv(f"GRADALIGN_{name.upper()}", str(value))

    give()
    return give
