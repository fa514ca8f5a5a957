"""What surrounds the data: the headers of pages, and the folder of the embedded server."""

import base64
import hashlib
import os
import re
import stat
import tempfile
from importlib import resources
from pathlib import Path

import psutil
import pytest


def hashes(tag, text):
    found = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in found]


@pytest.mark.parametrize(("path", "inline"), [("/", 0), ("/docs", 1)])
def test_pages_run_no_script_but_their_own_and_stand_in_no_frame(scorer, path, inline):
    with scorer.http() as http:
        page = http.get(path)
    policy = dict(part.strip().split(" ", 1) for part in page.headers["Content-Security-Policy"].split(";"))
    for tag in ("script", "style"):
        assert len(hashes(tag, page.text)) == inline
        assert policy[f"{tag}-src"].split() == ["'self'", *hashes(tag, page.text)]
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["object-src"] == "'none'"
    assert page.headers["X-Frame-Options"] == "DENY"
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Cache-Control"] == "no-store"
    # What the policy would block without a word: handlers and styles in attributes, and scripts from elsewhere.
    assert not re.search(r"<[^>]+\s(on\w+|style)\s*=", page.text)
    assert "Server" not in page.headers


def test_all_that_the_dashboard_loads_is_there_and_ours(scorer):
    with scorer.http() as http:
        names = re.findall(r'(?:src|href)="(assets/[^"]+)"', http.get("/").text)
        assert "assets/main.js" in names
        seen = set()
        while names:
            name = names.pop()
            reply = http.get(f"/{name}")
            assert reply.status_code == 200, name
            kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[name.rsplit(".", 1)[1]]
            assert reply.headers["Content-Type"].startswith(kind)
            assert http.get(f"/{name}", headers={"If-None-Match": reply.headers["ETag"]}).status_code == 304
            seen.add(name)
            found = re.findall(r'^import [^;]*"\./([^"]+)";', reply.text, re.MULTILINE)
            names += [f"assets/{other}" for other in found if f"assets/{other}" not in seen]
        assert {"assets/api.js", "assets/charts.js", "assets/vendor/uPlot.iife.min.js"} <= seen


@pytest.mark.parametrize(
    "name", ["x.js", "../pages.py", "..%2f..%2fapp.py", "index.html", "vendor", "vendor/NOTICE", ""]
)
def test_nothing_else_is_served_as_an_asset(scorer, name):
    with scorer.http() as http:
        assert http.get(f"/assets/{name}").status_code == 404


def test_what_is_vendored_says_what_it_is_and_under_which_licence():
    folder = resources.files("gradalign_scorer") / "pages/vendor"
    notice = (folder / "NOTICE").read_text()
    version = re.search(r"uPlot \(v([\d.]+)\)", (folder / "uPlot.iife.min.js").read_text()).group(1)
    assert f"uPlot {version}" in notice
    assert "MIT License" in notice
    assert "Permission is hereby granted" in (folder / "LICENSE").read_text()


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
