"""`gradalign rank --ray` on a real cluster of local processes: the files of one process to the byte, whatever dies."""

import os
import re
import signal
import time

import psutil
import pytest
from releases import needs
from responsefiles import problems, responses, save_files, write_jsonl, write_list
from sharedkit import command, processes_called, said, same_files, shards, started, wait_for_shards

from gradalign.cli import main

os.environ.update(RAY_raylet_start_wait_time_s="300")  # a busy machine is slow; Ray reads it when it is imported
needs("ray")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

GROUPS, SAMPLES = 25, 4
LONG = 200
NODE = {"num_cpus": 1, "object_store_memory": 100 * 1024**2}


@pytest.fixture(scope="module")
def cluster():
    """A head with one CPU; tests add nodes to it."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    yield made
    made.shutdown()


def node_of(cluster, cpus):
    """A further node, which the test may remove."""
    node = cluster.add_node(**{**NODE, "num_cpus": cpus})
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)
    cluster.wait_for_nodes()


@pytest.fixture
def second(cluster):
    yield from node_of(cluster, 1)


@pytest.fixture
def wide(cluster):
    yield from node_of(cluster, 3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = save_files(tmp_path_factory.mktemp("ray"), GROUPS, SAMPLES)
    write_jsonl(folder / "train.jsonl", responses(GROUPS, SAMPLES, seed=3)[::-1])
    write_jsonl(folder / "problems.jsonl", problems(GROUPS - 2))
    write_list(folder / "long.json", responses(LONG, 8, seed=5))
    return folder


@pytest.fixture(scope="module")
def plain(files, scorer, tmp_path_factory):
    """The files that one process writes of the long file, with exact products; their folder."""
    out = tmp_path_factory.mktemp("plain") / "s.jsonl"
    assert main(command(files, out, "--exact", "--url", scorer.url, train="long.json")) == 0
    return out.parent


@pytest.fixture
def long(files, cluster, scorer, tmp_path):
    """The arguments of the same by Ray, and where its files go."""
    out = tmp_path / "ray/s.jsonl"
    flags = ("--exact", "--url", scorer.url, "--ray", cluster.address, "--groups-per-task", "2")
    return command(files, out, *flags, train="long.json"), out


def workers(doing=""):
    """The processes of the actors, or those in a method; they descend from the nodes that this process started."""
    return processes_called(f"ray::Replica{doing}", os.getpid())


def wait_for_workers(process, count):
    deadline = time.monotonic() + 300
    while len(found := workers()) < count:
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def stopped_at_work(process, count):
    """The ids of so many workers, each stopped at a batch, so that none ends the ranking before another has begun."""
    found = []
    deadline = time.monotonic() + 300
    while len(found) < count:
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline
        for worker in workers(".measure"):
            if worker.pid not in found:
                os.kill(worker.pid, signal.SIGSTOP)
                found.append(worker.pid)
        time.sleep(0.02)
    return found


def measured(told):
    return int(told.partition(" gradients taken now")[0].split()[-1])


def assert_a_lost_node_costs_what_it_had_in_hand(cluster, node, process, out, plain):
    wait_for_shards(process, out, 6)
    cluster.remove_node(node, allow_graceful=False)
    told = said(process)
    assert "a worker was lost at train groups" in told
    assert measured(told) == LONG + 1
    assert same_files(plain, out.parent)


@pytest.mark.parametrize("flags", [(), ("--exact", "--mini-batch", "3", "--ranks", "2")])
def test_two_workers_write_the_files_of_one_process(cluster, second, files, scorer, tmp_path, capfd, flags):
    chosen = ("--select", "4", "--problems", str(files / "problems.jsonl"), "--url", scorer.url, *flags)
    assert main(command(files, tmp_path / "one/s.jsonl", *chosen, train="train.jsonl")) == 0
    printed = " ".join(capfd.readouterr().out.split()).partition(" wrote ")[0]
    on_ray = ("--ray", cluster.address, "--workers", "2", "--groups-per-task", "3")
    assert printed in said(started(command(files, tmp_path / "two/s.jsonl", *chosen, *on_ray, train="train.jsonl")))
    assert same_files(tmp_path / "one", tmp_path / "two")


def test_without_an_address_it_starts_a_cluster_and_ends_it(files, scorer, tmp_path):
    assert main(command(files, tmp_path / "one/s.jsonl", "--url", scorer.url)) == 0
    process = started(command(files, tmp_path / "two/s.jsonl", "--url", scorer.url, "--ray", "--workers", "1"))
    nodes = []
    while process.poll() is None and not nodes:
        nodes = [each for each in psutil.Process(process.pid).children() if "raylet" in each.name()]
        time.sleep(0.05)
    said(process)
    assert nodes
    psutil.wait_procs(nodes, timeout=60)
    assert not any(each.is_running() for each in nodes)
    assert same_files(tmp_path / "one", tmp_path / "two")


def test_a_killed_worker_is_replaced(long, plain):
    arguments, out = long
    process = started(arguments)
    wait_for_shards(process, out, 3)
    for worker in workers():
        os.kill(worker.pid, signal.SIGKILL)
    told = said(process)
    assert "a worker was lost at train groups" in told
    assert measured(told) == LONG + 1
    assert same_files(plain, out.parent)


def test_a_killed_driver_is_resumed(long, plain, capfd):
    arguments, out = long
    process = started(arguments)
    wait_for_shards(process, out, 3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(shards(out))
    assert main(arguments) == 2
    assert f"holds {kept} batches of an interrupted ranking" in capfd.readouterr().err
    assert measured(said(started([*arguments, "--resume"]))) == LONG - 2 * kept
    assert same_files(plain, out.parent)


def test_a_removed_node_costs_what_it_had_in_hand(cluster, second, long, plain):
    arguments, out = long
    process = started([*arguments, "--workers", "2"])
    wait_for_workers(process, 2)
    assert_a_lost_node_costs_what_it_had_in_hand(cluster, second, process, out, plain)


def test_of_four_workers_one_is_killed_and_three_leave_with_their_node(cluster, wide, long, plain):
    arguments, out = long
    process = started([*arguments, "--workers", "4"])
    busy = stopped_at_work(process, 4)
    os.kill(busy[0], signal.SIGKILL)
    for worker in busy[1:]:
        os.kill(worker, signal.SIGCONT)
    assert_a_lost_node_costs_what_it_had_in_hand(cluster, wide, process, out, plain)


def test_a_node_that_is_lost_while_its_workers_load_ends_nothing(cluster, wide, long, plain):
    arguments, out = long
    process = started([*arguments, "--workers", "4"])
    wait_for_workers(process, 4)
    cluster.remove_node(wide, allow_graceful=False)
    said(process)
    assert same_files(plain, out.parent)


@pytest.mark.parametrize(
    ("doing", "words"),
    [
        ("", "3 workers died one after the other while they loaded"),
        (".measure", f"3 workers died at train groups 0 to {LONG - 1}"),
    ],
)
def test_a_batch_or_a_start_that_no_worker_survives_ends_it(long, doing, words):
    arguments, out = long
    alone = ("--workers", "1", "--groups-per-task", str(LONG))  # one batch, which takes a second
    process = started([*arguments, *alone])
    killed = set()
    while process.poll() is None and not shards(out):
        for worker in workers(doing):
            if worker.pid not in killed:
                killed.add(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.02)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 2, told[-4000:]
    assert words in " ".join(told.split())
    assert len(killed) == 3, told[-4000:]
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model", "nowhere"), "--model nowhere cannot be loaded on --device cpu"),
        (("--ray", "127.0.0.1:1"), "--ray 127.0.0.1:1: no cluster can be joined there"),
    ],
)
def test_what_cannot_work_ends_with_a_reason(cluster, files, scorer, tmp_path, flags, words):
    process = started(command(files, tmp_path / "s.jsonl", "--url", scorer.url, "--ray", cluster.address, *flags))
    told, _ = process.communicate(timeout=500)
    assert process.returncode == 2, told[-4000:]
    assert words in re.sub(r"\s+", " ", told)
    assert not (tmp_path / "s.jsonl").exists()
