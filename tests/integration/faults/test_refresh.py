"""Refreshes that race scores: each reply names one version, and all of its alignments are of that version's vector."""

import threading

import numpy as np

from gradalign import Client, Projection

DIM, ROWS = 64, 40
PROJECTION = Projection(dim=DIM, seed=0, parameters="cd" * 32)
SCORERS, ROUNDS, VERSIONS = 6, 70, 20


def test_every_reply_of_a_race_was_computed_against_the_version_it_names(scorer, start_scorer, run_id):
    """Two scorers on one store, so that a version made by one is met by the other in the middle of a request."""
    other = start_scorer()
    rng = np.random.default_rng(0)
    sketches = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    ids = [f"p{i}" for i in range(ROWS)]
    rows = {i: row.astype(np.float64) for i, row in zip(ids, sketches, strict=True)}
    vectors, replies, errors, done = {}, [], [], threading.Event()

    def refresh(client):
        """The vector of a version is the one sketch that was sent for it."""
        while not done.is_set():
            row = rng.standard_normal((1, DIM)).astype(np.float32)
            reply = client.refresh_validation(["v"], row, policy_version=0, projection=PROJECTION, aggregation="mean")
            vectors[reply.validation_version] = row[0].astype(np.float64)
            done.wait(0.01)

    def score(client):
        done = 0
        while done < ROUNDS or len({reply.validation_version for reply in replies}) <= VERSIONS:
            done += 1
            replies.append(client.score(ids, sketches, policy_version=0, projection=PROJECTION))

    def guarded(act, url):
        try:
            with Client(url, run_id=run_id) as client:
                act(client)
        except Exception as error:
            errors.append(error)

    with Client(scorer.url, run_id=run_id) as client:
        first = rng.standard_normal((1, DIM)).astype(np.float32)
        reply = client.refresh_validation(["v"], first, policy_version=0, projection=PROJECTION)
        vectors[reply.validation_version] = first[0].astype(np.float64)
    refresher = threading.Thread(target=guarded, args=(refresh, other.url))
    urls = [scorer.url, other.url]
    scoring = [threading.Thread(target=guarded, args=(score, urls[i % 2])) for i in range(SCORERS)]
    for thread in (refresher, *scoring):
        thread.start()
    for thread in scoring:
        thread.join(300)
    done.set()
    refresher.join(120)

    assert errors == []
    assert len(replies) >= SCORERS * ROUNDS
    assert len({reply.validation_version for reply in replies}) > VERSIONS  # it was a race
    for reply in replies:
        vector = vectors[reply.validation_version]
        want = [rows[i] @ vector / np.linalg.norm(rows[i]) / np.linalg.norm(vector) for i in reply.problem_ids]
        np.testing.assert_allclose(reply.alignments, want, atol=1e-5)
    with Client(scorer.url, run_id=run_id) as client:
        assert client.problem("p0").times_scored == len(replies)
        assert client.run().validation_version == len(vectors)
