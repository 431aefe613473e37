"""For tests of programs that use Shoal: clusters of several nodes, proof that nothing is left of them, and faults on purpose. A pytest plug-in.

In `conftest.py`::

    pytest_plugins = ["shoal.testing"]

and in a test::

    def test_that_a_node_may_die(shoal_cluster, shoal_faults):
        cluster = shoal_cluster(2, num_cpus=1)          # a head and one more node, connected
        ref = work.remote()
        shoal_faults.kill_node(cluster, cluster.worker_nodes[0])
        assert shoal.get(ref, timeout=60) == 1

Fixtures: `shoal_cluster`, `shoal_faults`, and `shoal_no_leaks` (session; `shoal_cluster` uses it). Without pytest: `no_leaks()`, `Faults`, `wait_until`.
All processes are this host's own: several nodes are several supervisors, each with its services.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from .cluster_utils import Cluster, ClusterNode

__all__ = ["Faults", "Leak", "Leftovers", "no_leaks", "shoal_cluster", "shoal_faults", "shoal_no_leaks", "wait_until"]

BOUND_S = 30.0
# Nothing may be left so long after the last cluster's end.
GONE_S = 5.0
T = TypeVar("T")


class Leak(AssertionError):
    """Something was left behind."""


def wait_until(condition: Callable[[], T], bound_s: float = BOUND_S, what: str = "") -> T:
    """Polls a condition until it is true, and returns its value.

    Raises:
        TimeoutError: it never was, within `bound_s` seconds; with `what` was waited for.
    """
    deadline = time.monotonic() + bound_s
    pause = 0.005
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"within {bound_s:g} s it never came true: {what or condition}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return value


# -- leaks -------------------------------------------------------------------------------------------------------------


class Leftovers:
    """What there is of the clusters whose folder (SHOAL_TMPDIR) is `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._shared = set(os.listdir("/dev/shm"))
        self._children = set(self._all_children())

    def processes(self) -> dict[int, str]:
        """Living processes that were started with the folder as theirs, but this one: pid to name."""
        marker = f"SHOAL_TMPDIR={self.home}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if marker in (entry / "environ").read_bytes().split(b"\0") and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
            except OSError:
                continue
        return found

    def sockets(self) -> list[str]:
        return [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if line.split()[-1].startswith(f"{self.home}/")]

    def _all_children(self) -> list[int]:
        return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in _text(task / "children").split()]

    def children(self) -> list[int]:
        """Of this process, since this object was made; zombies too."""
        return [pid for pid in self._all_children() if pid not in self._children]

    def arenas(self) -> list[str]:
        return [where for fd in Path("/proc/self/fd").iterdir() if "memfd:" in (where := _link(fd))]

    def shared_memory(self) -> list[str]:
        """New in /dev/shm, which all of this host's processes share: without semaphores, which no cluster makes, and what others have mapped."""
        new = {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")} - self._shared
        if new:
            ours = {os.getpid(), *self.processes()}
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) not in ours:
                    new -= {line.rpartition("/dev/shm/")[2].removesuffix(" (deleted)") for line in _text(entry / "maps").splitlines() if "/dev/shm/" in line}
        return sorted(new)

    def all(self) -> dict[str, Any]:
        """What there is, by kind; empty when there is nothing."""
        found = {
            "processes": self.processes(), "children": self.children(), "sockets": self.sockets(), "files": sorted(os.listdir(self.home)),
            "shared memory": self.shared_memory(), "arenas": self.arenas(),
        }  # fmt: skip
        return {what: things for what, things in found.items() if things}


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@contextlib.contextmanager
def no_leaks(bound_s: float = GONE_S) -> Iterator[Leftovers]:
    """A folder for all clusters that are made inside; at the end there is no process, socket, file or shared memory of them.

    Raises:
        Leak: naming what there still is `bound_s` seconds after the block. It is ended and removed then.
    """
    # Not pytest's tmp_path: its name is too long for Unix sockets below it.
    home = Path(tempfile.mkdtemp(prefix="shoal-test-", dir="/tmp"))
    before = {name: os.environ.pop(name, None) for name in ("SHOAL_TMPDIR", "SHOAL_ADDRESS")}
    os.environ["SHOAL_TMPDIR"] = str(home)
    left = Leftovers(home)
    try:
        yield left
        gc.collect()  # what only waits for the collector is not left behind: the traceback of an error that was caught holds a whole router
        deadline = time.monotonic() + bound_s
        while (found := left.all()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if found:
            raise Leak(f"{bound_s:g} s after the last test there still are: {found}")
    finally:
        for pid in left.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)
        os.environ.pop("SHOAL_TMPDIR")
        os.environ.update({name: value for name, value in before.items() if value is not None})


# -- faults ------------------------------------------------------------------------------------------------------------


class Faults:
    """Makes things go wrong, on this host. What it froze goes on at `thaw_all`."""

    def __init__(self) -> None:
        self._frozen: set[int] = set()

    def pid_of(self, actor: Any, bound_s: float = BOUND_S) -> int:
        """The process of a living actor; waits for its start. Raises TimeoutError."""
        from shoal_gcs.v1 import gcs_pb2

        from ._calls import ask

        def pid() -> int:
            query = gcs_pb2.ActorQuery(actor_id=actor._core.meta.actor_id)
            record = gcs_pb2.Actor.FromString(ask("testing", "gcs/GetActor", query))
            return int(record.pid) if record.state == gcs_pb2.ACTOR_ALIVE else 0

        return wait_until(pid, bound_s, f"{actor!r} to live")

    def kill(self, pid: int, bound_s: float = BOUND_S) -> int:
        """SIGKILL to a worker, or any other process of the cluster; returns when it is gone."""
        self._frozen.discard(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _runs(pid), bound_s, f"process {pid} to go")
        return pid

    def kill_actor(self, actor: Any, bound_s: float = BOUND_S) -> int:
        """Ends an actor's process as a crash would; the actor restarts if it may. Returns the pid."""
        return self.kill(self.pid_of(actor, bound_s), bound_s)

    def kill_node(self, cluster: Cluster, node: ClusterNode) -> None:
        """Ends a whole node at once, as when its power goes."""
        cluster.remove_node(node, allow_graceful=False)

    def kill_service(self, node: ClusterNode, service: str) -> int:
        """Ends "gcs", "raylet", "objectstore", "http" or "zygote" of a node. Returns the pid."""
        return self.kill(node.pid_of(service))

    def freeze(self, pid: int) -> None:
        """Stops a process (SIGSTOP): it lives, and does not answer."""
        os.kill(pid, signal.SIGSTOP)
        self._frozen.add(pid)

    def thaw(self, pid: int) -> None:
        self._frozen.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def thaw_all(self) -> None:
        for pid in list(self._frozen):
            self.thaw(pid)

    @contextlib.contextmanager
    def frozen(self, pid: int) -> Iterator[None]:
        """`freeze`, and `thaw` at the block's end."""
        self.freeze(pid)
        try:
            yield
        finally:
            self.thaw(pid)


def _runs(pid: int) -> bool:
    state = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return bool(state) and state[0] not in "ZX"


# -- fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shoal_no_leaks() -> Iterator[Leftovers]:
    """`no_leaks` around all tests that use it."""
    with no_leaks() as left:
        yield left


@pytest.fixture
def shoal_cluster(shoal_no_leaks: Leftovers) -> Iterator[Callable[..., Cluster]]:
    """Makes a cluster: `shoal_cluster(nodes=2, num_cpus=1, connect=True)`; every node gets the other arguments, see `Cluster.add_node`.

    At the test's end this process disconnects and all nodes end.
    """
    from ._init import shutdown

    made: list[Cluster] = []

    def make(nodes: int = 1, *, connect: bool = True, **node_args: Any) -> Cluster:
        if nodes < 1:
            raise ValueError(f"nodes={nodes}: at least 1, the head")
        cluster = Cluster(initialize_head=True, head_node_args=node_args)
        made.append(cluster)
        for _ in range(nodes - 1):
            cluster.add_node(**node_args)
        if connect:
            cluster.connect()
        return cluster

    yield make
    shutdown()
    for cluster in made:
        cluster.connected = False
        cluster.shutdown()


@pytest.fixture
def shoal_faults() -> Iterator[Faults]:
    """`Faults`; what is frozen goes on at the test's end."""
    faults = Faults()
    yield faults
    faults.thaw_all()
