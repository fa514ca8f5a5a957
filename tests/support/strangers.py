"""Commands as a user who owns nothing here, has no entry in the passwd file and no home: as in a container."""

import os
import shutil
import subprocess
import sys
from functools import cache

import pytest

UID = 123456
# The interpreter may stand behind a folder that only its owner may enter: then the stranger reads all, and writes nothing.
_COMMAND = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups"]
_READING = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]


@cache
def _prefix() -> list[str]:
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root may become another user, by setpriv")
    # Its own look-up may end at another interpreter.
    probe = f"import sys, numba, redis.asyncio; assert sys.version == {sys.version!r}"
    for prefix in (_COMMAND, [*_COMMAND, *_READING]):
        if subprocess.run([*prefix, sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0:
            return prefix
    pytest.skip("another user cannot run this interpreter")


def as_stranger(*arguments: str, home: str | None, cwd: str = "/", **environment: str) -> subprocess.Popen[str]:
    """Start this interpreter with arguments; its output comes as text, both streams in one.

    Args:
        arguments: of the interpreter.
        home: HOME; None for none.
        cwd: where.
        environment: more of it.
    """
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    homes = {} if home is None else {"HOME": home}
    return subprocess.Popen(
        [*_prefix(), sys.executable, *arguments],
        env={**kept, **homes, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
