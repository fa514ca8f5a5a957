"""TLS with a certificate of our own authority, over real connections."""

import asyncio
import shutil
import signal
import ssl
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from authority import Authority, openssl

from gradalign import AsyncClient, Client, InvalidValue, Unreachable
from gradalign_scorer.healthcheck import fault

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def secure(scorer, valkey_url, forks, authority):
    """A scorer that speaks TLS on its port and plain HTTP on a Unix socket."""
    cert, key = authority.sign("scorer")
    with tempfile.TemporaryDirectory(prefix="ga-") as folder:
        flags = ["--tls-cert", str(cert), "--tls-key", str(key), "--uds", f"{folder}/s"]
        process = type(scorer)(valkey_url, *flags, API_KEY="the-key-of-the-test", forks=forks)
        process.uds = f"{folder}/s"
        yield process
        process.end()


def test_the_client_scores_over_tls(secure, authority, run_id, problem_ids, sketches, projection):
    assert secure.url.startswith("https://")
    with Client(secure.url, run_id=run_id, api_key="the-key-of-the-test", ca_file=authority.cert) as client:
        client.refresh_validation(problem_ids, sketches, policy_version=0, projection=projection)
        assert len(client.score(problem_ids, sketches, policy_version=0, projection=projection).problem_ids) == 8


def test_the_health_check_of_the_image_speaks_tls(secure, authority):
    environment = {"GRADALIGN_PORT": secure.url.rpartition(":")[2], "GRADALIGN_TLS_CERT": "scorer.pem"}
    assert fault(environment) is None
    assert fault({**environment, "GRADALIGN_TLS_CERT": ""}) is not None


def test_so_does_the_async_client_with_the_authority_from_the_environment(secure, authority, monkeypatch):
    monkeypatch.setenv("GRADALIGN_CA_FILE", str(authority.cert))

    async def ask():
        async with AsyncClient(secure.url, run_id="r", retries=0) as client:
            return await client.health()

    assert asyncio.run(ask())["status"] == "ok"


def test_a_client_that_does_not_know_the_authority_sends_nothing(secure):
    client = Client(secure.url, run_id="r", api_key="the-key-of-the-test", retries=0)
    with client, pytest.raises(Unreachable, match="ca_file= or GRADALIGN_CA_FILE"):
        client.run()


def test_another_authority_and_another_name_are_not_trusted(secure, authority, tmp_path):
    other = Authority(tmp_path)
    client = Client(secure.url, run_id="r", ca_file=other.cert, retries=0)
    with client, pytest.raises(Unreachable, match="not trusted"):
        client.health()
    elsewhere = secure.url.replace("127.0.0.1", "127.0.0.2")
    context = ssl.create_default_context(cafile=authority.cert)
    context.check_hostname = True
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{elsewhere}/livez", verify=context)


def test_plain_http_is_not_answered(secure):
    with pytest.raises(httpx.TransportError):
        httpx.get(secure.url.replace("https://", "http://") + "/livez")


def test_old_protocol_versions_are_not_spoken(secure):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with secure.connect() as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw)


def test_the_unix_socket_stays_plain(secure):
    with Client(f"unix:{secure.uds}", run_id="r", api_key="the-key-of-the-test", retries=0) as client:
        assert client.health()["status"] == "ok"


def test_large_bodies_and_the_limit_on_heads_hold_over_tls(secure, authority):
    context = ssl.create_default_context(cafile=authority.cert)
    headers = {"Authorization": "Bearer the-key-of-the-test", "Content-Type": "application/msgpack"}
    with secure.http(verify=context, headers=headers) as http:
        assert http.post("/score", content=b"\xc1" * (4 << 20)).status_code == 400
        assert http.get("/livez", headers={"X-Large": "x" * 100_000}).status_code == 413


def test_sighup_takes_a_new_certificate_and_keeps_the_old_one_from_a_broken_file(start_scorer, authority, tmp_path):
    cert, key = tmp_path / "cert", tmp_path / "key"

    def install(paths):
        for source, target in zip(paths, (cert, key), strict=True):
            shutil.copy(source, target)
        key.chmod(0o600)

    def served():
        return ssl.get_server_certificate(process.address)

    def reload(words):
        process.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 120
        while words not in process.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    first, second = authority.sign("first"), authority.sign("second")
    install(first)
    process = start_scorer("--tls-cert", str(cert), "--tls-key", str(key))
    assert served().strip() == first[0].read_text().strip()
    install((second[0], first[1]))
    reload("the certificate stays as it was")
    assert served().strip() == first[0].read_text().strip()
    install(second)
    reload("read the certificate")
    assert served().strip() == second[0].read_text().strip()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("missing", ["GRADALIGN_TLS_CERT (--tls-cert)", "No such file"]),
        ("swapped", ["GRADALIGN_TLS_CERT (--tls-cert)", "holds no PEM block CERTIFICATE"]),
        ("mismatch", ["GRADALIGN_TLS_CERT (--tls-cert)", "GRADALIGN_TLS_KEY (--tls-key)", "not of one pair"]),
        ("encrypted", ["GRADALIGN_TLS_KEY (--tls-key)", "encrypted", "openssl pkey"]),
        ("open", ["GRADALIGN_TLS_KEY (--tls-key)", "chmod 600"]),
        ("garbled", ["GRADALIGN_TLS_CERT (--tls-cert)", "cannot be used"]),
        ("alone", ["GRADALIGN_TLS_CERT (--tls-cert)", "GRADALIGN_TLS_KEY (--tls-key) is not"]),
    ],
)
def test_files_that_cannot_be_used_stop_the_start(serve, authority, tmp_path, make, words):
    cert, key = authority.sign("a")
    if make == "missing":
        cert = tmp_path / "none"
    elif make == "swapped":
        cert, key = key, cert
    elif make == "mismatch":
        key = authority.sign("b")[1]
    elif make == "encrypted":
        openssl("pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", tmp_path / "key")
        key = tmp_path / "key"
        key.chmod(0o600)
    elif make == "open":
        key.chmod(0o644)
    elif make == "garbled":
        cert = Path(shutil.copy(cert, tmp_path))
        cert.write_text(cert.read_text().replace("M", "N"))
    flags = ["--tls-cert", str(cert)] if make == "alone" else ["--tls-cert", str(cert), "--tls-key", str(key)]
    done = serve(*flags)
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("protected", [False, True])
def test_keys_in_clear_are_warned_of(start_scorer, authority, protected):
    cert, key = authority.sign("warned")
    flags = ["--tls-cert", str(cert), "--tls-key", str(key)] if protected else []
    process = start_scorer("--host", "0.0.0.0", *flags, API_KEY="the-key-of-the-test")
    assert ("travel in clear to 0.0.0.0" in process.log.read_text()) is not protected


def test_a_ca_file_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    (tmp_path / "no.pem").write_text("no certificate")
    for path in (tmp_path / "none.pem", tmp_path / "no.pem"):
        with pytest.raises(InvalidValue, match="GRADALIGN_CA_FILE"):
            Client("https://scorer", run_id="r", ca_file=path)
    with pytest.raises(InvalidValue, match="nothing is verified"):
        Client("http://scorer", run_id="r", ca_file=tmp_path / "no.pem")
    monkeypatch.setenv("GRADALIGN_CA_FILE", str(tmp_path / "none.pem"))
    Client("http://scorer", run_id="r").close()
