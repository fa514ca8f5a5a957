"""Stores of several processes: a cluster of primaries and replicas, and a primary with a replica under three Sentinels."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from gradalign_scorer.store.embedded.process import find_server

START_SECONDS = 60.0
SLOTS = 16384


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; nodes tell each other theirs, so that they are chosen before."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in taken]


class Node:
    """A server process on a port of this machine, with its data in a folder.

    Args:
        folder: of its own; made.
        port: to listen on.
        first: arguments before the settings, such as a configuration file.
        settings: of its configuration; `cluster_enabled="yes"` sets `cluster-enabled`.
    """

    def __init__(self, folder: Path, port: int, first: tuple[str, ...] = (), **settings: str) -> None:
        folder.mkdir()
        self.folder, self.port, self.place = folder, port, f"127.0.0.1:{port}"
        given = {"port": str(port), "bind": "127.0.0.1", "dir": str(folder), **settings}
        arguments = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", value)]
        self._command = [str(find_server()), *first, *arguments]
        password = settings.get("requirepass")
        self.plain = redis.Redis(port=port, password=password, socket_timeout=30, retry=Retry(NoBackoff(), 0))
        self.start()

    def start(self, *more: str) -> None:
        """Start it, or start it again.

        Args:
            more: arguments behind those that it always has.
        """
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([*self._command, *more], stdout=log, stderr=log, cwd=self.folder)
        until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return bool(self.plain.ping())
        except redis.ConnectionError:
            return False
        except redis.ResponseError:
            return True

    def _replication(self) -> dict[str, object]:
        """What it says of its role; nothing while it is dead, or where it hung up, as one does whose role changes."""
        try:
            return self.plain.info("replication") if self.process.poll() is None else {}
        except redis.ConnectionError:
            return {}

    def is_primary(self) -> bool:
        """Whether it takes itself for a primary."""
        return self._replication().get("role") == "master"

    def follows(self) -> bool:
        """Whether it is a replica that has all its primary had."""
        return self._replication().get("master_link_status") == "up"

    def kill(self) -> None:
        """End it at once, as a machine that fails does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """End it, however it stands."""
        self.plain.close()
        self.process.send_signal(signal.SIGCONT)
        self.kill()


def until(holds: Callable[[], bool], seconds: float = START_SECONDS) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.02)


class Cluster:
    """A cluster whose primaries hold equal shares of the slots; behind them their replicas, in the same order."""

    def __init__(self, folder: Path, primaries: int, settings: dict[str, str]) -> None:
        self.primaries, self._folder, self._settings = primaries, folder, settings
        self.nodes: list[Node] = []

    @property
    def url(self) -> str:
        """Names its first primaries."""
        return f"redis+cluster://{','.join(node.place for node in self.nodes[: self.primaries])}"

    def add(self) -> Node:
        """One more node, which knows no other."""
        port, bus = free_ports(2)
        own = {"cluster_enabled": "yes", "cluster_port": str(bus), "appendonly": "yes", "save": ""}
        own |= {"repl_diskless_sync_delay": "0", **self._settings}
        self.nodes.append(Node(self._folder / f"node{len(self.nodes)}", port, **own))
        return self.nodes[-1]

    def join(self, *joining: Node) -> None:
        """Let nodes meet the others, and return once all know each other and hold the cluster for whole."""
        for node in joining:
            bus = node.plain.config_get("cluster-port")["cluster-port"]
            self.nodes[0].plain.execute_command("CLUSTER MEET", "127.0.0.1", node.port, bus)
        until(lambda: all(self._met(node) for node in self.nodes))

    def form(self) -> None:
        """Join the nodes, and return once each of them serves."""
        for number, node in enumerate(self.nodes):
            node.plain.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            if number < self.primaries:
                begin, end = (SLOTS * each // self.primaries for each in (number, number + 1))
                node.plain.execute_command("CLUSTER ADDSLOTSRANGE", begin, end - 1)
        self.join(*self.nodes[1:])
        for number, node in enumerate(self.nodes[self.primaries :]):
            primary = self.nodes[number % self.primaries].plain.execute_command("CLUSTER MYID")
            node.plain.execute_command("CLUSTER REPLICATE", primary)
        until(lambda: all(self._serves(node) for node in self.nodes))

    def _met(self, node: Node) -> bool:
        known = node.plain.execute_command("CLUSTER NODES")
        met = len(known) == len(self.nodes) and all("handshake" not in each["flags"] for each in known.values())
        return met and node.plain.execute_command("CLUSTER INFO")["cluster_state"] == "ok"

    def _serves(self, node: Node) -> bool:
        state = node.plain.execute_command("CLUSTER INFO")
        whole = state["cluster_state"] == "ok" and int(state["cluster_size"]) == self.primaries
        return whole and (node.is_primary() or node.follows())

    def whole(self) -> bool:
        """Whether every slot has a primary that runs, and every other node follows one."""
        primaries = [node for node in self.nodes if node.is_primary()]
        return len(primaries) == self.primaries and all(node in primaries or node.follows() for node in self.nodes)

    def node_of(self, key: str) -> int:
        """Which of the first primaries has a key."""
        return key_slot(key.encode()) * self.primaries // SLOTS

    def run_on(self, number: int, name: str = "run") -> str:
        """The name of a run that lives on one of the first primaries."""
        return next(f"{name}-{i}" for i in range(1000) if self.node_of(f"{name}-{i}") == number)


@contextmanager
def cluster(folder: Path, *, primaries: int = 3, replicas: int = 0, **settings: str) -> Iterator[Cluster]:
    """A cluster of real processes.

    Args:
        folder: of its own.
        primaries: how many.
        replicas: of each primary.
        settings: of all nodes.
    """
    made = Cluster(folder, primaries, settings)
    try:
        for _ in range(primaries * (1 + replicas)):
            made.add()
        made.form()
        yield made
    finally:
        for node in made.nodes:
            node.end()


class Sentinels:
    """A primary and its replica, watched by three Sentinels."""

    def __init__(self, servers: list[Node], sentinels: list[Node]) -> None:
        self.servers, self.sentinels = servers, sentinels
        self.url = f"redis+sentinel://{','.join(each.place for each in sentinels)}/store/0"

    def whole(self) -> bool:
        """Whether one of the two is the primary, the other follows it, and every Sentinel sees both."""
        roles = [(server.is_primary(), server.follows()) for server in self.servers]
        return sorted(roles) == [(False, True), (True, False)] and all(_ready(each) for each in self.sentinels)

    def primary(self) -> Node:
        """The one that the first Sentinel names."""
        _, port = self.sentinels[0].plain.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", "store")
        return next(server for server in self.servers if server.port == int(port))


@contextmanager
def sentinels(
    folder: Path, *, down_after_ms: int = 1000, sentinel_lines: str = "", **settings: str
) -> Iterator[Sentinels]:
    """A primary, a replica and three Sentinels, all real processes.

    Args:
        folder: of its own.
        down_after_ms: of silence, after which a Sentinel holds the primary for dead.
        sentinel_lines: more of the Sentinels' configuration.
        settings: of the two servers.
    """
    ports = free_ports(5)
    with ExitStack() as stack:
        servers = []
        for number in range(2):
            own = {"appendonly": "yes", "save": "", "repl_diskless_sync_delay": "0", **settings}
            own |= {"replicaof": f"127.0.0.1 {ports[0]}"} if number else {}
            servers.append(Node(folder / f"server{number}", ports[number], **own))
            stack.callback(servers[-1].end)
        until(servers[1].follows)
        watching = []
        for number in range(3):
            file = folder / f"sentinel{number}.conf"
            file.write_text(
                f"sentinel monitor store 127.0.0.1 {ports[0]} 2\nsentinel down-after-milliseconds store {down_after_ms}\n"
                f"sentinel failover-timeout store 6000\n{sentinel_lines}"
            )
            node = Node(folder / f"sentinel{number}", ports[2 + number], (str(file), "--sentinel"))
            watching.append(node)
            stack.callback(node.end)
        made = Sentinels(servers, watching)
        until(lambda: all(_ready(node) for node in watching))
        yield made


def _ready(sentinel: Node) -> bool:
    state = sentinel.plain.sentinel_masters()["store"]
    replicas = sentinel.plain.sentinel_slaves("store")
    followed = [each for each in replicas if each["master-link-status"] == "ok" and not each["is_sdown"]]
    return len(followed) == 1 and state["num-other-sentinels"] == 2 and not state["is_sdown"]
