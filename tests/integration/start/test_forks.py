"""Forked scorers of the tests are as good as commands of their own: environment, arguments, signals, exit status, log."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere tests start every scorer anew")


@pytest.fixture
def start(forks, tmp_path):
    """Starts `gradalign` in a fork: `start(*arguments, **environment)`; the process and its log."""

    def begin(*arguments, **environment):
        with (tmp_path / "log").open("wb") as log:
            return forks.start(arguments, {"PATH": os.environ["PATH"], **environment}, log), tmp_path / "log"

    return begin


def test_its_words_and_its_exit_status_are_the_commands(start, serve):
    process, log = start("serve", "--port", "none")
    wanted = serve("--port", "none", fresh=True)
    assert process.wait(60) == process.poll() == process.returncode == wanted.returncode == 2
    assert log.read_text() == wanted.stderr


def test_its_environment_is_what_it_was_given_and_nothing_else(start, monkeypatch):
    monkeypatch.setenv("GRADALIGN_PORT", "of-the-tests")
    process, log = start("serve", GRADALIGN_HOST="0.0.0.0")
    assert process.wait(60) == 2
    assert "GRADALIGN_HOST (--host) is '0.0.0.0'" in log.read_text()
    assert "of-the-tests" not in log.read_text()


def test_it_starts_in_the_folder_of_the_test(start, monkeypatch, tmp_path):
    (tmp_path / "here.pem").write_text("nothing of the kind")
    said = []
    for folder in (tmp_path, tmp_path.parent):
        monkeypatch.chdir(folder)
        process, log = start("serve", "--tls-cert", "here.pem", "--tls-key", "here.pem")
        assert process.wait(60) == 2
        said.append(log.read_text())
    assert "No such file" not in said[0]
    assert "No such file" in said[1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -9)])
def test_signals_end_it_as_they_end_a_command(start_scorer, number, status):
    scorer = start_scorer("--drain-seconds", "0")
    with pytest.raises(subprocess.TimeoutExpired):
        scorer.process.wait(timeout=0.01)
    assert scorer.process.poll() is None
    scorer.process.send_signal(number)
    assert scorer.process.wait(timeout=60) == status
    with pytest.raises(ProcessLookupError):
        os.kill(scorer.process.pid, 0)
    scorer.process.send_signal(number)  # it has ended: nothing happens


def test_one_that_is_stopped_has_not_ended(start_scorer):
    scorer = start_scorer()
    scorer.process.send_signal(signal.SIGSTOP)
    assert scorer.process.poll() is None
    scorer.process.send_signal(signal.SIGCONT)
    with scorer.http() as http:
        assert http.get("/readyz").status_code == 200
    assert scorer.end() == 0


def test_many_at_once_have_statuses_of_their_own(start_scorer):
    first, second = start_scorer("--drain-seconds", "0"), start_scorer("--drain-seconds", "0")
    second.process.send_signal(signal.SIGKILL)
    assert second.process.wait(60) == -signal.SIGKILL
    assert first.process.poll() is None
    with first.http() as http:
        assert http.get("/readyz").status_code == 200
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(60) == 0
