"""Addresses as people write them, and what the image's health check makes of them."""

import pytest

from gradalign_scorer.healthcheck import fault, ready_url
from gradalign_scorer.hosts import authority, bare, is_loopback, reachable


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "[::FFFF:7f00:1]", "localhost",
     "LOCALHOST", "localhost."],
)  # fmt: skip
def test_loopback_however_it_is_written(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "[::]", "::ffff:0.0.0.0", "::ffff:10.0.0.1", "fe80::1%eth0", "2001:db8::1", "::2", "localhost.evil",
     "notlocalhost", "[::1", "::1]", "127.1", "128.0.0.1", ""],
)  # fmt: skip
def test_whatever_else_others_may_reach(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("[::]", "::1"), ("::ffff:0.0.0.0", "127.0.0.1"), ("::1", "::1"),
        ("10.1.2.3", "10.1.2.3"), ("2001:db8::1", "2001:db8::1"), ("[2001:db8::1]", "2001:db8::1"), ("scorer", "scorer"),
    ],
)  # fmt: skip
def test_every_address_is_reached_by_loopback_and_any_other_by_itself(host, near):
    assert reachable(host) == near


def test_an_ipv6_address_stands_in_brackets():
    assert authority("::1", 8000) == authority("[::1]", 8000) == "[::1]:8000"
    assert authority("127.0.0.1", 8000) == "127.0.0.1:8000"
    assert authority("scorer", "80") == "scorer:80"
    assert bare("[::1]") == bare("::1") == "::1"


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "http://127.0.0.1:8000/readyz"),
        ({"GRADALIGN_HOST": "", "GRADALIGN_PORT": ""}, "http://127.0.0.1:8000/readyz"),
        ({"GRADALIGN_HOST": "0.0.0.0", "GRADALIGN_PORT": "9000"}, "http://127.0.0.1:9000/readyz"),
        ({"GRADALIGN_HOST": "::"}, "http://[::1]:8000/readyz"),
        ({"GRADALIGN_HOST": "2001:db8::1"}, "http://[2001:db8::1]:8000/readyz"),
        ({"GRADALIGN_TLS_CERT": "/run/tls.crt"}, "https://127.0.0.1:8000/readyz"),
    ],
)
def test_the_health_check_asks_the_scorer_of_the_environment(environment, url):
    assert ready_url(environment) == url


def test_the_health_check_says_why_not():
    said = fault({"GRADALIGN_PORT": "1"})
    assert "http://127.0.0.1:1/readyz" in said
    assert "refused" in said
