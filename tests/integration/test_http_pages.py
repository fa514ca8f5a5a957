"""What surrounds the data: the headers of pages, and the folder of the embedded server."""

import base64
import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

import psutil
import pytest


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_run_no_script_but_their_own_and_stand_in_no_frame(scorer, path):
    with scorer.http() as http:
        page = http.get(path)
    policy = dict(part.strip().split(" ", 1) for part in page.headers["Content-Security-Policy"].split(";"))
    scripts = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert scripts
    assert policy["script-src"].split() == ["'self'", *(f"'sha256-{digest}'" for digest in hashes)]
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
    assert page.headers["X-Frame-Options"] == "DENY"
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Cache-Control"] == "no-store"
    # What the policy would block without a word: handlers in attributes, and scripts from elsewhere.
    assert not re.search(r"<[^>]+\son\w+\s*=", page.text)
    assert "Server" not in page.headers


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777])
def test_the_embedded_server_listens_in_a_private_folder_and_on_no_port(start_scorer, mode):
    with tempfile.TemporaryDirectory(prefix="ga-") as folder:
        os.chmod(folder, mode)
        process = start_scorer("--data-dir", folder, redis_url=None)
        (server,) = psutil.Process(process.process.pid).children()
        assert not server.net_connections(kind="inet")
        sockets = {Path(c.laddr) for c in server.net_connections(kind="unix") if c.laddr}
        assert sockets
        for path in sockets:
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        for path in Path(folder).rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        with process.http() as http:
            assert http.get("/readyz").status_code == 200
        assert process.end() == 0


def test_a_new_data_folder_is_private(start_scorer, tmp_path):
    process = start_scorer("--data-dir", str(tmp_path / "new"), redis_url=None)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert process.end() == 0
