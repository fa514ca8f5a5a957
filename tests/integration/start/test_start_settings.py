"""A setting that cannot be used stops the start, and the message names it in both spellings, and what would do."""

import pytest

from gradalign_scorer.settings import Settings

# For every setting, values that cannot be used, and words that say what would do.
WRONG = {
    "host": [("203.0.113.7", "an address of this machine"), ("no such host", "GRADALIGN_HOST (--host)")],
    "port": [("abc", "integer"), ("70000", "65535"), ("-1", "greater than or equal to 0")],
    "uds": [("/no/such/folder/s", "107 bytes"), ("/" + "x" * 200, "107 bytes")],
    "redis_url": [
        ("http://u:pa55word@h", "redis://user:password@host:6379/0"),
        ("redis://u:pa55word@h:port", "redis://user:password@host:6379/0"),
        ("redis://u:pa55word/x@h:1/db", "%2F"),
    ],
    "redis_wait_replicas": [
        ("some", "integer"),
        ("-1", "greater than or equal to 0"),
    ],
    "redis_wait_seconds": [("0", "greater than 0"), ("9", "less than or equal to 8"), ("nan", "finite number")],
    "data_dir": [("/proc/nope", "may write to"), ("/dev/null", "may write to")],
    "device": [("warp", "cuda:N")],
    "api_key": [("good-key,pa55word with spaces", "key 2 of 2"), ("pa55wörd", "openssl rand")],
    "api_key_file": [("/no/such/file", "may read"), ("/dev/null", "regular file")],
    "insecure": [],  # a flag without a value; as a variable, below
    "tls_cert": [("/no/such/file", "GRADALIGN_TLS_KEY (--tls-key)")],
    "tls_key": [("/no/such/file", "GRADALIGN_TLS_CERT (--tls-cert)")],
    "max_body_bytes": [("1", "1024"), ("1GB", "integer"), (str(1 << 40), "GRADALIGN_MAX_ADMITTED_BYTES")],
    "max_json_bytes": [("0", "1024")],
    "max_admitted_bytes": [("2000", "raise it")],
    "pool_bytes": [("-1", "greater than or equal to 0")],
    "max_requests": [("0", "greater than or equal to 1")],
    "threads": [("0", "greater than or equal to 1"), ("many", "valid integer")],
    "max_streams": [("0", "greater than or equal to 1")],
    "metrics_runs": [("-1", "greater than or equal to 0"), ("1001", "less than or equal to 1000")],
    "queue_size": [("0", "greater than or equal to 1")],
    "body_seconds": [("0", "greater than 0"), ("nan", "finite"), ("soon", "number")],
    "stuck_seconds": [("-1", "greater than 0"), ("inf", "finite")],
    "cache_bytes": [("-1", "greater than or equal to 0")],
    "drain_seconds": [("-1", "greater than or equal to 0"), ("inf", "finite")],
    "grace_seconds": [("0", "greater than 0"), ("inf", "finite")],
    "log_level": [("loud", "'debug'")],
    "log_format": [("xml", "'json'")],
    "tracing": [],  # a flag too
}
CASES = [(name, value, words) for name, cases in WRONG.items() for value, words in cases]


def check(done, name, words):
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("gradalign: ")
    for word in (f"GRADALIGN_{name.upper()}", f"(--{name.replace('_', '-')}", words):
        assert word in line, line
    for leak in ("pa55w", "Traceback"):
        assert leak not in done.stderr


def test_every_setting_is_tried():
    assert set(WRONG) == set(Settings.model_fields)


@pytest.mark.parametrize(("name", "value", "words"), CASES)
def test_as_a_flag(serve, name, value, words):
    others = [] if name == "port" else ["--port", "0"]
    others += [] if name in ("data_dir", "redis_url") else ["--redis-url", "redis://127.0.0.1:1"]
    others += ["--insecure"] if name == "host" else []
    check(serve(*others, f"--{name.replace('_', '-')}={value}"), name, words)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [*CASES[:6:2], ("insecure", "perhaps", "boolean"), *CASES[-2:]],
)
def test_as_a_variable(serve, name, value, words):
    others = {"PORT": "0", "REDIS_URL": "redis://127.0.0.1:1", "INSECURE": "1", name.upper(): value}
    check(serve(fresh=True, **others), name, words)


def test_several_faults_are_told_at_once(serve):
    done = serve("--port", "x", MAX_REQUESTS="0", LOG_LEVEL="loud")
    for name in ("GRADALIGN_PORT", "GRADALIGN_MAX_REQUESTS", "GRADALIGN_LOG_LEVEL"):
        assert name in done.stderr


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("API_KEYS", "API_KEY"),
        ("APIKEY", "API_KEY"),
        ("API_KEYFILE", "API_KEY_FILE"),
        ("MAX_BODY_BYTE", "MAX_BODY_BYTES"),
    ],
)
def test_a_misspelt_variable_is_not_ignored(serve, wrong, right):
    done = serve(**{wrong: "pa55word"})
    assert done.returncode == 2
    assert f"GRADALIGN_{wrong} is no setting of the scorer; did you mean GRADALIGN_{right}?" in done.stderr
    assert "pa55word" not in done.stderr


def test_variables_of_others_and_empty_ones_are_let_be(start_scorer):
    # Those of a Kubernetes service named gradalign, of clients and trainers, and what an unset template leaves.
    others = {"SERVICE_HOST": "10.0.0.1", "PORT_8000_TCP": "tcp://10.0.0.1:8000", "CA_FILE": "/x", "SCORER_KEY": "k"}
    process = start_scorer(fresh=True, **others, TLS_CERT="", API_KEY_FILE="", MAX_REQUESTS="", API_KEY="")
    with process.http() as http:
        assert http.get("/runs").status_code == 200


def test_a_loopback_scorer_needs_no_key_and_any_other_does(serve):
    done = serve("--host", "0.0.0.0", fresh=True)
    assert done.returncode == 2
    for word in (
        "GRADALIGN_HOST (--host)",
        "GRADALIGN_API_KEY_FILE (--api-key-file)",
        "GRADALIGN_INSECURE=1 (--insecure)",
    ):
        assert word in done.stderr
