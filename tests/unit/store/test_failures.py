"""Failures of the store in our own words: what redis-py wraps, what it stumbles over, and what is not its fault."""

import asyncio

import pytest
from redis.asyncio import Connection
from redis.exceptions import ClusterError, RedisClusterException
from redis.exceptions import ConnectionError as RedisConnectionError

from gradalign import Unavailable
from gradalign_scorer.store.server.failures import store_errors


def told(error):
    with pytest.raises(Unavailable) as caught, store_errors():
        raise error
    assert caught.value.retry_after
    return caught.value.message


def test_a_connection_whose_writer_is_gone_is_one_that_was_closed():
    """As happens where redis-py closes idle connections to a node that fails, and one was just taken up."""
    with pytest.raises(Unavailable, match="closed just as it was taken up: retry"), store_errors():
        asyncio.run(Connection()._send_packed_command([b"PING"]))


def test_faults_of_our_own_stay_what_they_are():
    with pytest.raises(AttributeError), store_errors():
        None.missing  # noqa: B018
    with pytest.raises(RuntimeError), store_errors():
        raise RuntimeError


def test_what_a_clusters_client_wraps_is_told_as_if_it_were_not():
    error = RedisClusterException("Redis Cluster cannot be connected.")
    error.__cause__ = RedisConnectionError("Authentication required.")
    assert "give user and password in GRADALIGN_REDIS_URL" in told(error)
    assert "All slots are not covered" in told(RedisClusterException("All slots are not covered"))


def test_redirections_without_an_end_are_a_slot_that_moves():
    assert "slot is moving between nodes of the cluster, and nothing ran: retry" in told(ClusterError("TTL exhausted."))
