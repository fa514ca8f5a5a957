"""A store's URL taken apart: of one server, a cluster, Sentinels; and one that is wrong, in words without its password."""

import pytest

from gradalign_scorer.settings import SettingsError, load_settings
from gradalign_scorer.storeurl import StoreURL


@pytest.mark.parametrize("text", ["redis://h", "rediss://:pw@h:6380/2", "unix:///run/redis.sock?db=1"])
def test_one_servers_url_is_left_to_the_library(text):
    assert StoreURL.parse(text) == StoreURL(text, "single")


def test_a_cluster_has_some_nodes_one_user_and_the_librarys_options():
    url = StoreURL.parse(
        "rediss+cluster://user:p%2Fa,s@s@h1:7000,h2,[::1]:7002/0?ssl_cert_reqs=none&ssl_min_version=771"
    )
    assert (url.kind, url.tls, url.service) == ("cluster", True, "")
    assert url.nodes == (("h1", 7000), ("h2", 6379), ("::1", 7002))
    assert url.options == {
        "username": "user",
        "password": "p/a,s@s",
        "ssl_cert_reqs": "none",
        "ssl_min_version": 771,
    }


def test_sentinels_have_a_service_a_database_and_a_login_of_their_own():
    url = StoreURL.parse(
        "redis+sentinel://:pw@h1,h2:7/my%20store/3?sentinel_username=u&sentinel_password=a%40b&client_name=c"
    )
    assert (url.kind, url.tls, url.service, url.nodes) == ("sentinel", False, "my store", (("h1", 26379), ("h2", 7)))
    assert url.options == {"password": "pw", "db": 3, "client_name": "c"}
    assert url.sentinel_login == {"username": "u", "password": "a@b"}
    assert StoreURL.parse("redis+sentinel://h/s").options == {}


def test_neither_password_is_shown():
    url = StoreURL.parse("redis+sentinel://u:hush@h/s?sentinel_password=hush")
    assert "hush" not in repr(url)


REFUSED = {
    "redis+cluster://": "host 1 is none",
    "redis+cluster://u:hush@": "host 1 is none",
    "redis+cluster://h1,,h2": "host 2 is none",
    "redis+cluster://h1:0": "host 1 is none",
    "redis+cluster://h1:hush": "host 1 is none",
    "redis+cluster://u:hu/sh@h1:7": "host 1 is none",
    "redis+cluster://u:12/hush@h1:7": "names a database",
    "redis+cluster://h1:7000/1": "names a database, and a cluster has only 0",
    "redis+cluster://u:12?hush@h1:7": "one of its options is unknown",
    "redis+cluster://u:hu#sh@h1:7": "redis+cluster://user:password@host1:7000,host2:7001",
    "redis+cluster://h?sentinel_password=hush": "option 'sentinel_password' is unknown: expected client_name",
    "redis+cluster://h?ssl_ca_certs=f": "begin the URL with rediss+cluster://",
    "rediss+cluster://h?ssl_cert_reqs=maybe": "ssl_cert_reqs is 'maybe': expected none, optional or required",
    "redis+cluster://h?health_check_interval=often": "Invalid value for 'health_check_interval'",
    "redis+sentinel://h1:26379": "names no service",
    "redis+sentinel://h1:26379/": "names no service",
    "redis+sentinel://u:12/hush@h:1": "names no service",
    "redis+sentinel://h1/s/x": "database is no number",
    "redis+sentinel://h1/s/0/1": "database is no number",
    "cluster://h": "redis+cluster:// or rediss+cluster:// for a Redis Cluster",
    "redis+unix://h": "redis+sentinel:// or rediss+sentinel:// for Sentinels",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_url_is_refused_at_the_start_with_what_was_expected_and_no_password(text):
    with pytest.raises(SettingsError) as caught:
        load_settings({"redis_url": text})
    message = str(caught.value)
    assert message.startswith("GRADALIGN_REDIS_URL (--redis-url): ")
    assert REFUSED[text] in message
    assert "hush" not in message
    assert "hu/sh" not in message
