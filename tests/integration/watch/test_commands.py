"""`gradalign status` and `gradalign top`, as typed: what they print, and how they end."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
from liverun import LiveRun

from gradalign import Client
from gradalign.cli import main

# Whatever runs in a shell's background ignores SIGINT, and so do its children.
INTERRUPTIBLE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from gradalign.cli import main; sys.exit(main(sys.argv[1:]))"
)


def gradalign(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRADALIGN_")}
    return subprocess.run(
        [sys.executable, "-m", "gradalign", *arguments],
        env={**clean, "COLUMNS": "120", **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def calm(scorer, run_id):
    """A run without warnings."""
    with Client(scorer.url, run_id=run_id) as client:
        run = LiveRun(client)
        run.rates[:] = 0.5
        run.rounds(4)
        yield run


class TestStatus:
    def test_a_calm_run(self, scorer, calm):
        done = gradalign("status", calm.client.run_id, "--url", scorer.url)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{calm.client.run_id}  ok ")
        assert "policy 6," in done.stdout

    def test_a_run_with_warnings_says_them_as_the_scorer_does(self, scorer, calm):
        calm.version += 40
        calm.round()
        state = calm.client.run()
        assert [w.kind for w in state.warnings] == ["validation_old"]
        done = gradalign("status", calm.client.run_id, GRADALIGN_URL=scorer.url)
        assert done.returncode == 1
        assert "- validation is 48 policy versions old" in done.stdout
        as_json = gradalign("status", "--json", calm.client.run_id, GRADALIGN_URL=scorer.url)
        assert as_json.returncode == 1
        report = json.loads(as_json.stdout)
        assert report == {"status": "warnings", "runs": [state.to_map()]}
        assert calm.client.run_id in gradalign("status", "--url", scorer.url).stdout

    def test_without_an_answer(self, scorer, run_id):
        away = gradalign("status", "--url", "http://127.0.0.1:9")
        assert away.returncode == 2
        assert "got no reply" in away.stderr
        as_json = gradalign("status", "--json", "--url", "http://127.0.0.1:9")
        assert (as_json.returncode, json.loads(as_json.stdout)["error"]["type"]) == (2, "unreachable")
        unknown = gradalign("status", run_id, "--json", "--url", scorer.url)
        assert (unknown.returncode, json.loads(unknown.stdout)["error"]["type"]) == (2, "not_found")
        assert gradalign("status", "not a run", "--url", scorer.url).returncode == 2

    def test_a_key_comes_from_the_environment(self, start_scorer, calm):
        process = start_scorer(API_KEY="only-this-one")
        assert gradalign("status", "--url", process.url).returncode == 2
        allowed = gradalign("status", calm.client.run_id, "--url", process.url, GRADALIGN_API_KEY="only-this-one")
        assert allowed.returncode == 0


class TestTop:
    def test_once_where_the_output_is_no_terminal(self, scorer, calm):
        calm.version += 40
        calm.round()
        done = gradalign("top", calm.client.run_id, "--url", scorer.url)
        assert (done.returncode, done.stderr) == (0, "")
        assert "! validation is 48 policy versions old" in done.stdout
        best, worst = calm.client.outline().best[0], calm.client.outline().worst[0]
        for row in (best, worst):
            (line,) = [text for text in done.stdout.splitlines() if text.startswith(row.problem_id)]
            assert f"{row.alignment:.3f}" in line
        assert "\x1b" not in done.stdout
        runs = gradalign("top", "--url", scorer.url)
        assert calm.client.run_id.split("-")[0] in runs.stdout

    def test_a_run_without_scores(self, scorer, run_id):
        with Client(scorer.url, run_id=run_id) as client:
            LiveRun(client).refresh()
        done = gradalign("top", run_id, "--url", scorer.url)
        assert done.returncode == 0
        assert "no problem was scored yet" in done.stdout

    def test_a_name_does_not_reach_the_terminal_as_commands(self, scorer, calm):
        row = np.ones((1, 4096), dtype=np.float16)
        ids = ["\x1b]0;owned\x07[red]x"]
        projection = calm.client.run().projection
        from liverun import PROJECTION

        assert projection["id"] == PROJECTION.id
        calm.client.score(ids, row, policy_version=calm.version, projection=PROJECTION, strategy="norm")
        done = gradalign("top", calm.client.run_id, "--url", scorer.url)
        assert "�]0;owned�[red]x" in done.stdout

    def test_it_refreshes_in_place_until_interrupted(self, scorer, calm):
        parent, child = pty.openpty()
        command = ["top", calm.client.run_id, "--url", scorer.url, "--interval", "0.2"]
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, *command],
            stdout=child, stderr=child, env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        )  # fmt: skip
        os.close(child)
        seen = b""

        def until(words):
            nonlocal seen
            deadline = time.monotonic() + 120
            while words not in seen:
                assert time.monotonic() < deadline, seen[-3000:]
                if select.select([parent], [], [], 0.2)[0]:
                    seen += os.read(parent, 65536)

        try:
            until(b"policy 6,")
            calm.version = 20
            calm.round()
            until(b"policy 20,")
            process.send_signal(signal.SIGINT)
            # A terminal goes on reading: one that does not holds whoever writes its last frame.
            with suppress(OSError):
                while True:
                    seen += os.read(parent, 65536)
            assert process.wait(timeout=120) == 0
        finally:
            process.kill()
            process.wait()
            os.close(parent)

    @pytest.mark.parametrize("interval", ["0", "x", "nan"])
    def test_an_interval_that_is_none(self, interval, capsys):
        with pytest.raises(SystemExit):
            main(["top", "--interval", interval])
        assert "--interval" in capsys.readouterr().err
