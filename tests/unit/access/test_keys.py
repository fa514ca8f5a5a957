"""The key file line by line, and the ring that holds its keys: scopes, errors, and nothing of a key to be seen."""

import hmac
import pickle
from pathlib import Path

import pytest

from gradalign import Forbidden
from gradalign_scorer.access import keyring
from gradalign_scorer.access.keyfile import key_digest, read_key_file
from gradalign_scorer.access.keyring import KeyRing
from gradalign_scorer.access.scopes import Access
from gradalign_scorer.settings import SettingsError, load_settings

FILE = """
# team A
alpha-key  runs=teamA-*

beta-key   read-only runs=teamA-*,teamB-7
\tgamma-key
  # indented
"""


@pytest.fixture
def write(tmp_path):
    def write(text, mode=0o600):
        path = tmp_path / "keys"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return path

    return write


def test_each_line_is_a_key_with_its_scope(write):
    assert read_key_file(write(FILE)) == {
        key_digest(b"alpha-key"): Access(("teamA-*",)),
        key_digest(b"beta-key"): Access(("teamA-*", "teamB-7"), read_only=True),
        key_digest(b"gamma-key"): Access(),
    }


def test_the_example_of_the_documentation_is_taken(write):
    text = (Path(__file__).parents[3] / "docs/security.md").read_text()
    example = text.partition("### Scopes\n\n")[2].partition("\n\n`runs=`")[0]
    assert list(read_key_file(write(example)).values()) == [
        Access(("teamA-*",)),
        Access(("teamA-*", "shared-eval"), read_only=True),
        Access(),
    ]


@pytest.mark.parametrize(
    ("runs", "run", "allowed"),
    [
        ("*", "anything", True),
        ("teamA-*", "teamA-", True),
        ("teamA-*", "teamA-1", True),
        ("teamA-*", "teamA", False),
        ("teamA-*", "xteamA-1", False),
        ("teamA-*", "TEAMA-1", False),
        ("teamB-7", "teamB-7", True),
        ("teamB-7", "teamB-70", False),
        ("team.", "teamX", False),
    ],
)
def test_a_pattern_is_a_name_or_a_beginning(write, runs, run, allowed):
    (access,) = read_key_file(write(f"secret runs={runs}\n")).values()
    assert access.allows_run(run) is allowed
    if not allowed:
        with pytest.raises(Forbidden, match="runs="):
            access.check_run(run)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["holds 0 keys", "one a line"]),
        ("# none\n", ["holds 0 keys"]),
        ("topsecret\nother\ntopsecret\n", ["line 3 repeats the key of line 1"]),
        ("\ntopsecret readonly\n", ["line 2", "word 2", "read-only"]),
        ("topsecret phrase with spaces\n", ["line 1", "word 2"]),
        ("topsecret runs=\n", ["line 1", "run pattern ''"]),
        ("topsecret runs=a*b\n", ["line 1", "'a*b'", "runs=teamA-*,teamB-7"]),
        ("topsecret runs=a,,b\n", ["line 1", "run pattern ''"]),
        ("topsecret runs=a runs=b\n", ["line 1", "word 3", "repeated"]),
        ("topsecret read-only read-only\n", ["line 1", "word 3"]),
        ("runs=a-* topsecret\n", ["line 1 does not begin with a key"]),
        ("read-only\n", ["line 1 does not begin with a key"]),
        ("topsecret\n" + "x" * 513, ["line 2", "1 to 512"]),
        ("topsecret\n\x01\x02", ["line 2"]),
        ("topsecret\nschlüssel\n", ["not ASCII"]),
        ("env-key\n", ["line 1 repeats a key of GRADALIGN_API_KEY"]),
        ("\n".join(f"k{i}" for i in range(1001)), ["holds 1001 keys"]),
        (b"x" * (1 << 20) + b"\n", ["regular file of at most"]),
    ],
)
def test_a_fault_names_the_line_and_no_key(write, text, words):
    with pytest.raises(SettingsError) as caught:
        read_key_file(write(text), {key_digest(b"env-key")})
    for word in ("GRADALIGN_API_KEY_FILE (--api-key-file)", *words):
        assert word in str(caught.value)
    for secret in ("topsecret", "phrase", "schl", "env-key"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o601])
def test_a_file_open_to_all_is_refused(write, mode):
    path = write(FILE, mode)
    with pytest.raises(SettingsError, match=f"chmod 600 {path}"):
        read_key_file(path)


def test_a_group_may_read_it_as_kubernetes_needs(write):
    assert len(read_key_file(write(FILE, 0o440))) == 3


def test_no_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="No such file"):
        read_key_file(tmp_path / "none")
    with pytest.raises(SettingsError, match="regular file"):
        read_key_file(tmp_path)


@pytest.mark.parametrize("key", [b"env-1", b"gamma-key", b"wrong", b""])
def test_every_key_is_compared_whole(write, monkeypatch, key):
    ring = KeyRing([b"env-1", b"env-2"], write(FILE))
    compared = []
    compare = hmac.compare_digest

    def counting(one, other):
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(keyring.hmac, "compare_digest", counting)
    assert (ring.access(key) is not None) is (key in (b"env-1", b"gamma-key"))
    assert compared == [(32, 32)] * 5


def test_nothing_that_is_kept_shows_a_key(write):
    secret = "k3y-that-nobody-sees"
    settings = load_settings({"api_key": secret, "redis_url": "redis://u:pa55word@h"})
    ring = KeyRing([secret.encode()], write(FILE))
    for text in (repr(settings), str(settings), repr(ring), repr(vars(ring)), repr(pickle.dumps(vars(ring)))):
        for word in (secret, "alpha-key", "pa55word"):
            assert word not in text
