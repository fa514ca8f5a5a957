"""The file of API keys: one key a line, behind it what the key may do.

    # team A trains; the dashboard only looks
    3q2-Zk0v...  runs=teamA-*
    Jx81bn2c...  runs=teamA-*,teamB-7  read-only
    w0QyP6aa...

Empty lines and lines that begin with `#` are skipped. No message quotes a key, or a word that may be part of one.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Container
from pathlib import Path

from gradalign.wire.checks import shown
from gradalign_scorer.access.scopes import Access
from gradalign_scorer.settings import SettingsError

__all__ = ["key_digest", "read_key_file"]

_NAME = "GRADALIGN_API_KEY_FILE (--api-key-file)"
_MAX_BYTES = 1 << 20
_MAX_KEYS = 1000
_KEY = re.compile(r"[!-~]{1,512}")
_PATTERN = re.compile(r"[A-Za-z0-9._-]{0,128}\*|[A-Za-z0-9._-]{1,128}")
_READ_ONLY = "read-only"
_RUNS = "runs="
_EXPECTED = f"expected `KEY`, then optionally `{_RUNS}PREFIX*[,RUN...]` and `{_READ_ONLY}`, separated by spaces"


def key_digest(key: bytes) -> bytes:
    """What is kept and compared instead of a key: equal lengths for all, and nothing to print."""
    return hashlib.sha256(key).digest()


def read_key_file(path: Path, taken: Container[bytes] = ()) -> dict[bytes, Access]:
    """What each key of a file may do, by the key's digest.

    Args:
        path: of the file.
        taken: digests of keys that were given elsewhere, and may not be repeated.

    Raises:
        SettingsError: the file cannot be read or others may read it, or a line cannot be understood (its number is given).
    """
    keys: dict[bytes, Access] = {}
    lines: dict[bytes, int] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        digest, access = _entry(path, number, words)
        if digest in lines:
            raise _fault(path, number, f"repeats the key of line {lines[digest]}; give each key one line")
        if digest in taken:
            raise _fault(
                path, number, "repeats a key of GRADALIGN_API_KEY, which may do everything; remove one of them"
            )
        lines[digest], keys[digest] = number, access
    if not 1 <= len(keys) <= _MAX_KEYS:
        raise SettingsError(f"{_NAME} is {path}, which holds {len(keys)} keys; expected 1 to {_MAX_KEYS}, one a line.")
    return keys


def _text(path: Path) -> str:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
            raise SettingsError(f"{_NAME} is {path}; expected a regular file of at most {_MAX_BYTES} bytes.")
        if found.st_mode & stat.S_IRWXO:
            raise SettingsError(
                f"{_NAME} is {path}, which every user of this machine may open (mode {stat.S_IMODE(found.st_mode):04o}); "
                f"run `chmod 600 {path}` (a Kubernetes secret volume: `defaultMode: 0440` with an fsGroup)."
            )
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise SettingsError(
            f"{_NAME} is {path}, which cannot be read ({error.strerror or error}); give a file that this user may read."
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{_NAME} is {path}, which is not ASCII text; {_EXPECTED}.") from None


def _entry(path: Path, number: int, words: list[str]) -> tuple[bytes, Access]:
    key, *scope = words
    if not _KEY.fullmatch(key) or key == _READ_ONLY or key.startswith(_RUNS):
        raise _fault(path, number, f"does not begin with a key of 1 to 512 visible characters; {_EXPECTED}")
    runs: tuple[str, ...] | None = None
    read_only = False
    for position, word in enumerate(scope, start=2):
        if word == _READ_ONLY and not read_only:
            read_only = True
        elif word.startswith(_RUNS) and runs is None:
            runs = _patterns(path, number, word.removeprefix(_RUNS))
        else:
            raise _fault(path, number, f"has a word {position} that is unknown or repeated; {_EXPECTED}")
    return key_digest(key.encode()), Access(runs or ("*",), read_only)


def _patterns(path: Path, number: int, text: str) -> tuple[str, ...]:
    patterns = tuple(text.split(","))
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise _fault(
                path,
                number,
                f"has the run pattern {shown(pattern)}; expected a run id, or the beginning of one with a `*` behind it, as "
                f"in {_RUNS}teamA-*,teamB-7",
            )
    return patterns


def _fault(path: Path, number: int, fault: str) -> SettingsError:
    return SettingsError(f"{_NAME} is {path}, whose line {number} {fault}.")
