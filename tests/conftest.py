"""The order of the tests, a real Valkey for the store's, and makers of commits."""

import asyncio
import os
import time
import uuid

import hypothesis
import numpy as np
import pytest

from gradalign import Projection, RoundRecord
from gradalign_scorer.store import (
    EmbeddedServer,
    RefreshCommit,
    RunStore,
    ScoreCommit,
    SelectionCommit,
    ValidationRecord,
)

pytest_plugins = ["collector", "scorers"]

# No test needs the hub, and where there is none each request to it is repeated for most of a minute. Read at import.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A busy machine is slow: how long an example takes says nothing about what it shows.
hypothesis.settings.register_profile(
    "gradalign", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("gradalign")

PROJECTION = Projection(dim=8, seed=0, parameters="ab" * 32)

# Files whose single tests take longest, about ten seconds of a core and more: `make test ARGS=--durations=40` names them.
LONGEST = {
    *("e2e/test_trl_ranks.py", "e2e/test_trl_ends.py", "e2e/test_trl_docs.py", "e2e/test_trl_deepspeed.py"),
    "e2e/test_commands.py",
    *("e2e/test_examples.py", "e2e/test_adapters_pages.py", "e2e/test_dashboard_trained.py", "e2e/test_reproduce.py"),
    *("e2e/test_site.py", "faults/test_restart.py", "adapters/test_verl09_engine.py", "adapters/test_verl09_run.py"),
    *("capture/test_capture_sharded.py", "capture/test_capture_sharded_oddly.py"),
    "forward/test_forward_mixed_precision.py",
}


def pytest_collection_modifyitems(items):
    """Begin with the longest: one of them at the end would keep a worker at work while the others have none."""
    # Otherwise they stay as they were, each file's together.
    items.sort(key=lambda item: f"{item.path.parent.name}/{item.path.name}" not in LONGEST)


@pytest.fixture(scope="session")
def store_url():
    """A Valkey that the store's tests in this process share; each has a run of its own."""
    with EmbeddedServer(None) as server:
        yield server.url


class Kit:
    """Makes commits of one run, and runs coroutines on a store."""

    projection = PROJECTION

    def __init__(self, url, run_id):
        self.url = url
        self.run_id = run_id

    def run(self, act, *, url=None, **settings):
        """Run `act(store)` on a store that is closed behind it."""

        async def go():
            store = RunStore.connect(url or self.url, **settings)
            try:
                return await act(store)
            finally:
                await store.close()

        return asyncio.run(go())

    def _common(self, kind, version, request_id, epoch, reply):
        return {
            "run_id": self.run_id,
            "policy_version": version,
            "epoch": epoch,
            "request_id": request_id,
            "digest": b"content",
            "reply": reply,
            "record": RoundRecord(
                round=0,
                kind=kind,
                at=time.time(),
                policy_version=version,
                validation_version=None,
                problems=1,
                selected=0,
            ),
        }

    def scores(self, alignments, *, version=0, request_id=None, epoch=None, reply=b"reply", **more):
        """A score commit of a map {problem id: alignment}; the priority is the alignment."""
        values = np.array(list(alignments.values()), dtype=np.float64)
        columns = {
            "projection": PROJECTION,
            "validation_version": 0,
            "strategy": None,
            "ids": list(alignments),
            "alignments": values,
            "priorities": values,
            "signal": np.ones(len(values), dtype=bool),
            "selected": np.zeros(len(values), dtype=bool),
        }
        return ScoreCommit(**{**self._common("score", version, request_id, epoch, reply), **columns, **more})

    def refresh(self, number, *, version=0, request_id=None, epoch=None, reply=b"refreshed", **more):
        """A refresh commit of validation version `number`, whose vector holds that number."""
        columns = {
            "projection": PROJECTION,
            "validation": ValidationRecord(number, version, np.full(PROJECTION.dim, number, dtype=np.float32)),
            "problems": 3,
            "coherence": 0.5,
        }
        return RefreshCommit(**{**self._common("refresh", version, request_id, epoch, reply), **columns, **more})

    def selection(self, ids, *, version=0, request_id=None, epoch=None, reply=b"selected", **more):
        """A selection commit."""
        return SelectionCommit(**{**self._common("select", version, request_id, epoch, reply), "ids": ids, **more})

    async def dump(self, store):
        """Everything the store shows of the run, but the clock of its last change."""
        problems, cursor = [], None
        while True:
            page = await store.page_problems(self.run_id, cursor, 100)
            problems += [await store.problem(self.run_id, row.problem_id) for row in page.problems]
            if (cursor := page.next) is None:
                break
        columns = await store.load_problems(self.run_id)
        table = sorted(zip(columns.ids, columns.table.tolist(), strict=True))
        run = await store.load_run(self.run_id)
        fields = {k: v for k, v in run.fields.items() if k not in ("updated_at", "undone", "serial")}
        validation = await store.load_validation(self.run_id, run.validation_version)
        moments = await store.load_moments(self.run_id)
        rounds = await store.rounds(self.run_id, 0, 1000)
        shown = (validation and validation.pack(), moments and moments.pack())
        return repr((problems, table, sorted(fields.items()), *shown, rounds))


@pytest.fixture
def kit(store_url):
    """A kit of a run of the test's own."""
    return Kit(store_url, f"run-{uuid.uuid4().hex}")


@pytest.fixture(autouse=True)
def _own_random_numbers(request):
    """A module's RNG begins each of its tests as the module made it, so that a test does not depend on those before it."""
    generator = getattr(request.module, "RNG", None)
    if generator is not None:
        if not hasattr(request.module, "_RNG_AT_FIRST"):
            request.module._RNG_AT_FIRST = generator.bit_generator.state
        generator.bit_generator.state = request.module._RNG_AT_FIRST
