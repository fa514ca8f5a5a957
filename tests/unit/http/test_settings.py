"""Settings: where they come from, what is refused, and that each refusal names the setting and the fix."""

import ipaddress
from pathlib import Path

import pytest

from gradalign_scorer.settings import Settings, SettingsError, is_loopback, load_settings

NUMBERS = {
    "port": ("-1", "65536", "http", "80.5"),
    "max_body_bytes": ("0", "1023", "1 GiB"),
    "max_json_bytes": ("0", "1023", "x"),
    "max_admitted_bytes": ("0", "1023", "x"),
    "max_requests": ("0", "-5", "many"),
    "queue_size": ("0", "-1", "1.5"),
    "body_seconds": ("0", "-1", "nan", "inf", "soon"),
    "stuck_seconds": ("0", "nan", "inf"),
    "cache_bytes": ("-1", "x"),
    "drain_seconds": ("-0.5", "nan", "inf"),
    "grace_seconds": ("0", "nan", "inf"),
}
OTHERS = {
    "redis_url": ("localhost:6379", "http://localhost", "REDIS", "redis://host:port"),
    "insecure": ("perhaps",),
    "tracing": ("2", "otlp"),
    "log_level": ("loud", "INFO "),
}
FAULTS = [(name, value) for name, values in {**NUMBERS, **OTHERS}.items() for value in values]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GRADALIGN_{name.upper()}", raising=False)


@pytest.mark.parametrize(("name", "value"), FAULTS)
@pytest.mark.parametrize("source", ["environment", "flag"])
def test_a_value_that_cannot_be_used_is_refused_by_both_names(monkeypatch, source, name, value):
    if source == "environment":
        monkeypatch.setenv(f"GRADALIGN_{name.upper()}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings({name: value} if source == "flag" else {})
    message = str(caught.value)
    assert f"GRADALIGN_{name.upper()} (--{name.replace('_', '-')})" in message
    # What was given, but where it may hold a password; and what would have been right.
    assert (repr(value) in message) == (name != "redis_url")
    assert "expected" in message
    assert "Traceback" not in message
    assert "pydantic" not in message


def test_every_faulty_setting_is_named_at_once():
    with pytest.raises(SettingsError) as caught:
        load_settings({"port": "x", "queue_size": 0, "log_level": "loud"})
    for name in ("PORT (--port)", "QUEUE_SIZE (--queue-size)", "LOG_LEVEL (--log-level)"):
        assert f"GRADALIGN_{name}" in str(caught.value)


class TestSources:
    def test_defaults(self):
        settings = load_settings()
        assert (settings.host, settings.port, settings.redis_url, settings.api_key) == ("127.0.0.1", 8000, None, ())
        assert settings.max_json_bytes <= settings.max_body_bytes <= settings.max_admitted_bytes

    def test_a_flag_wins_over_the_environment_and_that_over_the_default(self, monkeypatch):
        monkeypatch.setenv("GRADALIGN_PORT", "9000")
        monkeypatch.setenv("GRADALIGN_QUEUE_SIZE", "7")
        settings = load_settings({"port": 9001, "queue_size": None})
        assert (settings.port, settings.queue_size, settings.max_requests) == (9001, 7, 64)

    def test_data_go_where_the_desktop_standard_says(self, monkeypatch):
        monkeypatch.setenv("XDG_DATA_HOME", "/some/where")
        assert load_settings().data_dir == Path("/some/where/gradalign")
        monkeypatch.delenv("XDG_DATA_HOME")
        assert load_settings().data_dir == Path.home() / ".local/share/gradalign"

    @pytest.mark.parametrize("url", ["redis://h", "rediss://:pw@h:6380/2", "unix:///run/redis.sock"])
    def test_stores(self, url):
        assert load_settings({"redis_url": url}).redis_url == url

    def test_an_empty_store_is_none(self, monkeypatch):
        monkeypatch.setenv("GRADALIGN_REDIS_URL", "")
        assert load_settings().redis_url is None


class TestKeys:
    @pytest.mark.parametrize(
        ("text", "keys"),
        [
            ("one", [b"one"]),
            ("one,two", [b"one", b"two"]),
            (" one , two ", [b"one", b"two"]),
            ("one,,two,", [b"one", b"two"]),
            ("", []),
            (" ", []),
            (",", []),
        ],
    )
    def test_separated_by_commas(self, monkeypatch, text, keys):
        monkeypatch.setenv("GRADALIGN_API_KEY", text)
        assert list(load_settings().keys()) == keys
        assert list(load_settings({"api_key": text}).keys()) == keys

    @pytest.mark.parametrize("text", ["", " ", "  ", "\t", ",", " , ", "  ,\t,"])
    def test_nothing_is_no_key_however_it_is_spelt(self, monkeypatch, text):
        """An empty key would open the door to everyone who sends none."""
        monkeypatch.setenv("GRADALIGN_API_KEY", text)
        with pytest.raises(SettingsError):
            load_settings({"host": "0.0.0.0"})
        assert load_settings().keys() == ()

    def test_they_are_never_shown(self):
        settings = load_settings({"api_key": "hush-hush", "redis_url": "redis://:password1@h"})
        assert "hush" not in repr(settings) + str(settings)
        with pytest.raises(SettingsError) as caught:
            load_settings({"api_key": "hush hush", "port": "x"})
        assert "hush" not in str(caught.value)
        with pytest.raises(SettingsError) as caught:
            load_settings({"redis_url": "http://:password1@h"})
        assert "password1" not in str(caught.value)


class TestExposure:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
    def test_loopback_needs_no_key(self, host):
        assert load_settings({"host": host}).host == host
        assert is_loopback(host)

    @pytest.mark.parametrize(
        "host", ["0.0.0.0", "::", "[::]", "192.168.1.5", "8.8.8.8", "scorer", "localhost.evil", ""]
    )
    def test_any_other_address_needs_one(self, host):
        assert not is_loopback(host)
        with pytest.raises(SettingsError) as caught:
            load_settings({"host": host})
        for words in (f"GRADALIGN_HOST (--host) is {host!r}", "GRADALIGN_API_KEY", "127.0.0.1", "--insecure"):
            assert words in str(caught.value)
        assert load_settings({"host": host, "api_key": "k"}).host == host
        assert load_settings({"host": host, "insecure": True}).host == host

    def test_an_address_is_loopback_where_the_system_says_so(self):
        for text in ("127.0.0.0", "127.255.255.255", "128.0.0.1", "::2"):
            assert is_loopback(text) == ipaddress.ip_address(text).is_loopback


def test_limits_that_contradict_each_other():
    with pytest.raises(SettingsError) as caught:
        load_settings({"max_body_bytes": 4096, "max_admitted_bytes": 2048})
    for words in ("GRADALIGN_MAX_ADMITTED_BYTES", "GRADALIGN_MAX_BODY_BYTES", "4096", "2048", "raise it"):
        assert words in str(caught.value)
    assert load_settings({"max_body_bytes": 2048, "max_admitted_bytes": 2048}).max_body_bytes == 2048


@pytest.mark.parametrize("name", ["GRADALIGN_API_KEYS", "GRADALIGN_MAX_REQUEST", "GRADALIGN_QUEUE_SIZES"])
def test_a_variable_that_looks_like_a_setting_is_not_passed_over(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=f"{name} is no setting .*did you mean GRADALIGN_"):
        load_settings()


@pytest.mark.parametrize("name", ["GRADALIGN_SERVICE_HOST", "GRADALIGN_PORT_8000_TCP", "OTHER_API_KEYS"])
def test_other_variables_are_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert load_settings().port == 8000


def test_a_user_without_a_home_has_no_default_folder_and_no_fault(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert load_settings({"redis_url": "redis://h"}).data_dir is None
