"""An error that nobody foresaw is still an answer in the wire's shape, by which its request is found in the log."""

import asyncio
import logging

import httpx
import pytest

from gradalign_scorer.app import create_app
from gradalign_scorer.settings import Settings


@pytest.fixture
def ask():
    """Sends one GET to an app with a route that fails."""
    app = create_app(Settings(redis_url="redis://127.0.0.1:1/0"))

    async def fail():
        raise ZeroDivisionError("secret-of-the-request")

    app.add_api_route("/fails", fail)

    async def send(headers):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://scorer") as client:
            return await client.get("/fails", headers=headers)

    return lambda **headers: asyncio.run(send(headers))


def test_its_reply_names_the_request_and_keeps_the_cause_to_the_log(ask, caplog):
    with caplog.at_level(logging.WARNING):
        reply = ask(**{"X-Request-Id": "mine-1"})
    assert reply.status_code == 500
    error = reply.json()["error"]
    assert error["type"] == "internal"
    assert "ZeroDivisionError" in error["message"]
    assert "secret" not in reply.text
    assert reply.headers["X-Request-Id"] == "mine-1"
    assert "request_id=mine-1" in caplog.text


def test_a_request_without_a_name_gets_one(ask):
    reply = ask()
    assert len(reply.headers["X-Request-Id"]) == 32
