"""The key gate on its own: what opens it, on which paths, and that nothing else does."""

import asyncio
import base64
import json

import pytest

from gradalign_scorer.access.authentication import OPEN_PATHS, KeyGate
from gradalign_scorer.access.keyring import KeyRing
from gradalign_scorer.access.scopes import access_of

KEYS = (b"first-key", b"second-key")


def ask(authorization=None, *, path="/runs", method="GET", keys=KEYS, accept=None, kind="http"):
    """Status, headers and body of the gate's answer; 200 is what stands behind it."""
    passed, sent = [], []

    async def app(scope, receive, send):
        passed.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError("the gate read the body")

    headers = [] if authorization is None else [(b"authorization", authorization)]
    headers += [] if accept is None else [(b"accept", accept)]
    scope = {"type": kind, "method": method, "path": path, "headers": headers}
    asyncio.run(KeyGate(app, KeyRing(keys))(scope, receive, send))
    status = sent[0]["status"]
    assert bool(passed) == (status == 200)
    answered = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return status, answered, b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize(
    "header", [b"Bearer first-key", b"bearer second-key", b"BEARER   first-key ", b" Bearer first-key"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_key_opens(header, method):
    assert ask(header, method=method)[0] == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer first-ke",
        b"Bearer first-key2",
        b"Bearer FIRST-KEY",
        b"Bearer first-key,second-key",
        b"Bearer first-key second-key",
        b"Bearer \xff\xfe",
        b"Token first-key",
        b"first-key",
        b"Basic first-key",
        b"Basic " + base64.b64encode(b"first-key"),
        b"Basic " + base64.b64encode(b"first-key:"),
        b"Basic \xff",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_else_does(header, method):
    status, headers, body = ask(header, method=method)
    assert status == 401
    error = json.loads(body)["error"]
    assert (error["type"], error["param"]) == ("unauthorized", "Authorization")
    assert "Authorization: Bearer KEY" in error["message"]
    assert headers["www-authenticate"] == "Bearer"
    # A stranger is not told what was nearly right.
    assert "first" not in body.decode()


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_probes_need_none(path):
    assert ask(path=path)[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/livez/", "//livez", "/LIVEZ", "/livez/../runs", "/metrics", "/docs", "/nope", ""]
)
def test_every_other_path_does(path):
    assert ask(path=path)[0] == 401


def test_without_keys_everyone_passes():
    for header in (None, b"Bearer whatever", b"nonsense"):
        assert ask(header, keys=())[0] == 200


class TestBrowsers:
    BASIC = b"Basic " + base64.b64encode(b"any name:first-key")

    def test_may_read_with_the_key_as_password(self):
        assert ask(self.BASIC, path="/")[0] == 200

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_may_not_write(self, method):
        """They add remembered credentials to the forms of foreign sites too."""
        assert ask(self.BASIC, method=method)[0] == 401

    def test_are_asked_for_the_password_where_they_open_a_page(self):
        assert ask(path="/", accept=b"text/html,*/*")[1]["www-authenticate"].startswith("Basic realm=")
        assert ask(path="/", accept=b"application/json")[1]["www-authenticate"] == "Bearer"


def test_what_stands_behind_knows_what_the_key_may_do():
    seen = []

    async def app(scope, receive, send):
        request = type("Request", (), {"scope": scope})
        seen.append(access_of(request))

    scope = {"type": "http", "method": "GET", "path": "/runs", "headers": [(b"authorization", b"Bearer first-key")]}
    asyncio.run(KeyGate(app, KeyRing(KEYS))(scope, None, None))
    assert seen[0].allows_run("any")
    assert not seen[0].read_only
