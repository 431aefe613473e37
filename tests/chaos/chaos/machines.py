"""A cluster with a machine for each node: its own network, its own folder, its own small disk. Machine 1 is the head's, 2 the driver's.

With a standby there are two more: 5, whose head stands by, and 6, where the Redis server with the records is. Nothing is done to 6.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
from shoal._supervisor.config import NodeConfig
from shoal._supervisor.launch import Launched, launch
from shoal_base.auth import read_secret, sync_client_interceptors
from shoal_raylet.v1 import raylet_pb2 as raylet
from shoal_raylet.v1 import raylet_pb2_grpc as raylet_grpc

from .namespaces import Refused, apart
from .network import Network, address
from .relay import Way

HEAD, HOME, STANDBY, RECORDS = 1, 2, 5, 6
VICTIMS = (3, 4)
SERVICES = {"gcs": "shoal-gcs", "raylet": "shoal-raylet", "store": "shoal-objectsto"}
GCS_PORT = 6380
REDIS_PORT = 6379
STORE_BYTES = 96 << 20
DISK_BYTES = 512 << 20
BOUND_S = 90.0
COMPLAINTS = 40
_ASK_S = 5.0
# What a node may use, where control groups can be made; and the part of it above which it ends a worker.
MEMORY_BYTES = 2 << 30
MEMORY_THRESHOLD = 0.8
_ZYGOTE, _WORKER = "shoal-zygote", "shoal-worker"
Row = dict[str, Any]
T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, bound_s: float = BOUND_S, pause_s: float = 0.02) -> T:
    """Raises TimeoutError with what was waited for."""
    deadline = time.monotonic() + bound_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"within {bound_s:g} s it never came true: {what}")
        time.sleep(pause_s)
    return value


class Machine:
    """One host: what runs in its namespace."""

    def __init__(self, number: int, network: Network, base: Path) -> None:
        self.number = number
        self.name = f"m{number}"
        self.address = address(number)
        self.namespace = network.machines[number]
        self.home = base / self.name
        self.disk = base / f"{self.name}.disk"
        self.hidden: list[Path] = []  # the other machines' folders
        self.launched: Launched | None = None
        self.home.mkdir(mode=0o700)
        self.disk.mkdir(mode=0o700)
        options = f"size={DISK_BYTES},mode=0700"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "chaos", str(self.disk)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Refused(f"no disk of a fixed size can be made: {done.stderr.strip()}")
        self.group = small_group(f"shoal-chaos-{os.getpid()}-{self.name}", MEMORY_BYTES)

    def inside(self, work: Callable[[], T]) -> T:
        """What the work starts runs on this machine."""
        # PYTHONPATH: workers import what the workload is made of.
        wanted = {"SHOAL_TMPDIR": str(self.home), "PYTHONPATH": str(Path(__file__).parents[1])}
        before = {name: os.environ.pop(name, None) for name in (*wanted, "SHOAL_ADDRESS")}
        os.environ.update(wanted)

        def entered() -> T:
            if self.group is not None:  # this thread alone, which ends with the work; what it starts begins there
                (self.group / "tasks").write_text(str(threading.get_native_id()))
            with self.namespace.entered():
                return work()

        try:
            return apart(self.hidden, entered)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def service(self, name: str) -> int | None:
        """Its pid. A fork of it that has not begun yet may bear its name: the oldest is meant."""
        found = [pid for pid in self.namespace.pids() if _comm(pid) == SERVICES[name]]
        return found[0] if found else None

    def workers(self) -> list[int]:
        """Processes that run tasks: children of the zygote, and none of theirs that has not begun anything else yet."""
        return [pid for pid in self.namespace.pids() if _comm(pid) == _WORKER and _comm(_parent(pid)) == _ZYGOTE]

    def state(self, secret: bytes) -> Any:
        """What its raylet says, asked past the network. Raises grpc.RpcError; ValueError where there is none."""
        [socket_path] = [*self.home.glob("n-*/raylet.grpc.sock")][:1]
        with grpc.insecure_channel(f"unix:{socket_path}") as channel:
            stub = raylet_grpc.RayletStub(grpc.intercept_channel(channel, *sync_client_interceptors("node", secret)))
            return stub.State(raylet.Empty(), timeout=_ASK_S)

    def kill_all(self) -> None:
        """As when the power goes."""
        for _ in range(50):
            pids = self.namespace.pids()
            if not pids:
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        if self.launched is not None:
            self.launched.process.wait(10)
            self.launched = None
        # Nothing of it is on the machine that comes up in its place. The folder itself stays: others hide it, and would see another one.
        for entry in (*self.home.iterdir(), *self.disk.iterdir()):
            shutil.rmtree(entry, ignore_errors=True)

    @property
    def ballast(self) -> Path:
        return self.disk / "ballast"

    def close(self) -> None:
        if self.launched is not None:
            self.launched.stop()
        self.kill_all()
        subprocess.run(["umount", "-l", str(self.disk)], capture_output=True, check=False)
        if self.group is not None:
            with contextlib.suppress(TimeoutError):  # of processes that are not reaped yet
                wait_until(lambda: remove_group(self.group), f"{self.group} to be empty", 5.0)


def small_group(name: str, size_bytes: int) -> Path | None:
    """A control group (v1) with so much memory, below this process's own; None where none can be made."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            parent = Path("/sys/fs/cgroup/memory" + path)
            group = (parent if parent.is_dir() else Path("/sys/fs/cgroup/memory")) / name
            try:
                group.mkdir()
                (group / "memory.limit_in_bytes").write_text(str(size_bytes))
            except OSError:
                remove_group(group)
                return None
            return group
    return None


def remove_group(group: Path | None) -> bool:
    """False: there still is somebody in it."""
    if group is None or not group.exists():
        return True
    for inner in group.iterdir():
        if inner.is_dir() and not remove_group(inner):
            return False
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _comm(pid: int) -> str:
    return _read(pid, "comm").decode().strip()


def _parent(pid: int) -> int:
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


class Machines:
    """All of them. `lease_s`: a node that is silent for so long is dead."""

    def __init__(self, network: Network, *, lease_s: float = 10.0, cpus: int = 2) -> None:
        self.network = network
        self.heads = [number for number in (HEAD, STANDBY) if number in network.machines]
        self.lease_s = lease_s
        self.cpus = cpus
        self.base = Path(tempfile.mkdtemp(prefix="shoal-chaos-", dir="/tmp"))  # short: Unix sockets lie below it
        self.all: dict[int, Machine] = {}
        self._secrets = self.base / "secrets"  # copied to every machine, as an operator would
        self._secrets.mkdir(mode=0o700)
        self._http: dict[int, str] = {}  # of the heads
        self._answered = HEAD  # the one that was asked last with success
        self._redis: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._launching = threading.Lock()  # of its own: a node may wait for its network, which is mended meanwhile
        self._cuts: Counter[Way] = Counter()
        try:
            for number in network.machines:
                if number == RECORDS:
                    self._start_redis()
                else:
                    self.all[number] = Machine(number, network, self.base)
            for machine in self.all.values():
                machine.hidden = [other.home for other in self.all.values() if other is not machine]
            for number in self.all:
                self.start(number)
            wait_until(self.is_whole, "every machine's node to be counted", pause_s=0.1)
        except BaseException:
            self.close()
            raise

    @property
    def victims(self) -> list[int]:
        """Machines that may be lost: neither the head's nor the driver's."""
        return [number for number in VICTIMS if number in self.all]

    @property
    def gcs_address(self) -> str:
        return ",".join(f"{address(number)}:{GCS_PORT}" for number in self.heads)

    def start(self, number: int) -> None:
        """A node on a machine that has none."""
        machine = self.all[number]
        with self._launching:
            launched = machine.inside(lambda: launch(lambda: self._config(machine), own=True))
        machine.launched = launched
        if number in self.heads:
            self._http[number] = launched.started.http_address

    def _start_redis(self) -> None:
        server = shutil.which("redis-server")
        if server is None:
            raise Refused("a standby needs a Redis server (Debian and Ubuntu: apt install redis-server)")
        folder = self.base / "redis"
        folder.mkdir()
        command = [server, "--bind", address(RECORDS), "--port", str(REDIS_PORT), "--protected-mode", "no", "--save", "", "--dir", str(folder)]
        namespace = self.network.machines[RECORDS]
        with namespace.entered():
            self._redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)

        def listens() -> bool:
            with namespace.entered(), socket.socket() as sock:
                return sock.connect_ex((address(RECORDS), REDIS_PORT)) == 0

        wait_until(listens, "the Redis server to listen", 10.0)

    def _config(self, machine: Machine) -> NodeConfig:
        head = machine.number in self.heads
        shared = len(self.heads) > 1
        resources = {"CPU": self.cpus * 10_000, machine.name: 1000 * 10_000, "memory": (1 << 30) * 10_000, "object_store_memory": STORE_BYTES * 10_000}
        settings: dict[str, Any] = {"objectstore": {"spill_dirs": [str(machine.disk)], "full_wait_s": 10.0}}
        if machine.group is not None:
            settings["raylet"] = {"memory_usage_threshold": MEMORY_THRESHOLD}
        if head:
            settings["gcs"] = {"lease_s": self.lease_s, "heartbeat_s": min(1.0, self.lease_s / 10)}
            if shared:
                settings["gcs"]["head_term_s"] = min(3.0, self.lease_s / 2)
        return NodeConfig(
            base=str(machine.home), head=head, host=machine.address, port=GCS_PORT if head else 0, gcs_addresses=[] if head else self.gcs_address.split(","),
            standby=shared and head and bool(self._http), storage=f"redis://{address(RECORDS)}:{REDIS_PORT}/0" if shared else "",
            secrets_dir=str(self._secrets), resources=resources, node_name=machine.name, object_store_bytes=STORE_BYTES, settings=settings,
        )  # fmt: skip

    # -- the network's rules, which several faults change at a time ---------------------------------------

    def cut(self, ways: list[Way]) -> None:
        with self._lock:
            self._cuts.update(ways)
            self.network.rules.cut = set(self._cuts)
            self.network.apply()

    def slow(self, ways: list[Way], delay_s: tuple[float, float]) -> None:
        with self._lock:
            self.network.rules.delay_s |= dict.fromkeys(ways, delay_s)
            self.network.apply()

    def lose(self, ways: list[Way], part: float) -> None:
        with self._lock:
            self.network.rules.lost |= dict.fromkeys(ways, part)
            self.network.apply()

    def repeat(self, ways: list[Way], part: float) -> None:
        with self._lock:
            self.network.rules.repeated |= dict.fromkeys(ways, part)
            self.network.apply()

    def join(self, ways: list[Way]) -> None:
        """Undoes one `cut`; where two faults cut the same way, both must have ended."""
        with self._lock:
            self._cuts -= Counter(ways)
            self.network.rules.cut = set(self._cuts)
            self.network.apply()

    def mend(self, ways: list[Way]) -> None:
        """Nothing is late, lost or repeated on these ways."""
        with self._lock:
            rules = self.network.rules
            for way in ways:
                rules.delay_s.pop(way, None)
                rules.lost.pop(way, None)
                rules.repeated.pop(way, None)
            self.network.apply()

    # -- what the cluster says -------------------------------------------------------------------------

    def ask(self, path: str) -> Any:
        """The HTTP API of a head that serves. Raises OSError when nobody answers."""
        failed = OSError("no head was started yet")
        for number in sorted(self._http, key=lambda number: number != self._answered):
            try:
                answer = self._ask(number, path)
            except OSError as error:
                failed = error
            else:
                self._answered = number
                return answer
        raise failed

    def _ask(self, number: int, path: str) -> Any:
        host, _, port = self._http[number].rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=_ASK_S)
        try:
            with self.all[number].namespace.entered():
                connection.connect()
            token = read_secret(self._secrets / "user.token").decode()
            connection.request("GET", f"/api/{path}", headers={"Authorization": f"Bearer {token}"})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise OSError(f"the head answered {response.status} to {path}: {body[:300]!r}")
            return json.loads(body)
        except http.client.HTTPException as error:
            raise OSError(f"the head broke off: {error!r}") from error
        finally:
            connection.close()

    def leading(self) -> int:
        """The machine whose control store leads: the one that is not among those that stand by."""
        if len(self.heads) == 1:
            return self.heads[0]

        def found() -> int:
            try:
                status = self.ask("cluster_status")
            except OSError:
                return 0
            waiting = {text.rpartition(":")[0] for text in status["standby_heads"]}
            return next((number for number in self.heads if address(number) not in waiting and self.all[number].service("gcs")), 0)

        return wait_until(found, "a head that leads", pause_s=0.1)

    def times_led(self, besides: int) -> int:
        """How often a control store on another machine than this one has begun to lead. From their logs: whoever is asked would ask the lost one first."""
        logs = [log for number in self.heads if number != besides for log in self.all[number].home.glob("n-*/logs/gcs*.log")]
        return sum(log.read_text().count(" serves at ") for log in logs)

    def rows(self, resource: str) -> list[Row]:
        """[] when the head does not answer now."""
        try:
            return list(self.ask(f"v0/{resource}?limit=10000")["result"])
        except OSError:
            return []

    def worker_pids(self, number: int) -> set[int] | None:
        """As the machine's raylet knows them; None when it does not answer."""
        try:
            return {info.pid for info in self.all[number].state(read_secret(self._secrets / "node.secret")).workers}
        except (grpc.RpcError, ValueError):
            return None

    def living(self) -> dict[str, Row]:
        """Nodes by their names."""
        return {row["node_name"]: row for row in self.rows("nodes") if row["state"] == "ALIVE"}

    def node_id(self, number: int) -> str:
        row = self.living().get(self.all[number].name)
        return row["node_id"] if row else ""

    def is_dead(self, node_id: str) -> bool:
        return any(row["node_id"] == node_id and row["state"] == "DEAD" for row in self.rows("nodes"))

    def is_whole(self) -> bool:
        return set(self.living()) == {machine.name for machine in self.all.values()}

    # -- at rest -----------------------------------------------------------------------------------------

    def unrest(self) -> dict[str, Any]:
        """What is still lent, stored or queued; empty when the cluster is at rest."""
        nodes = self.living()
        found: dict[str, Any] = {}
        if missing := sorted({machine.name for machine in self.all.values()} - set(nodes)):
            found["missing nodes"] = missing
        for name, row in nodes.items():
            total, free = row["resources_total"], row["resources_available"]
            if lent := {key: total[key] - free.get(key, 0) for key in total if abs(total[key] - free.get(key, 0)) > 1e-6}:
                found[f"lent by {name}"] = lent
            if row["queued_leases"]:
                found[f"queued at {name}"] = row["queued_leases"]
        if objects := [row for row in self.rows("objects") if row["state"] != "FREE"]:
            found["objects"] = objects[:5] if len(objects) > 5 else objects
            found["number of objects"] = len(objects)
        for machine in self.all.values():
            if files := [str(file) for file in machine.disk.rglob("*.spill")]:
                found[f"spilled at {machine.name}"] = files
        return found

    def left(self) -> dict[str, Any]:
        """What of the machines still is there after `stop`; empty when there is nothing."""
        found: dict[str, Any] = {}
        for machine in self.all.values():
            if pids := machine.namespace.pids():
                found[f"processes on {machine.name}"] = {pid: _comm(pid) for pid in pids}
            if files := [str(file) for place in (machine.home, machine.disk) for file in place.iterdir()]:
                found[f"files on {machine.name}"] = files
        sockets = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if line.split()[-1].startswith(f"{self.base}/")]
        if sockets:
            found["sockets"] = sockets
        return found

    def stop(self) -> None:
        """Ends all nodes in good order, the heads last."""
        for machine in sorted(self.all.values(), key=lambda machine: (machine.number in self.heads, -machine.number)):
            if machine.launched is not None:
                machine.launched.stop()
                machine.launched = None

    def complaints(self) -> str:
        """The last warnings and errors that each machine's processes have logged."""
        found = []
        for machine in self.all.values():
            lines = [line for log in sorted(machine.home.glob("n-*/logs/*.log")) for line in log.read_text(errors="replace").splitlines()]
            found += [f"-- {machine.name}", *[line[:400] for line in lines if " WARNING " in line or " ERROR " in line][-COMPLAINTS:]]
        return "\n".join(found)

    def keep_logs(self, place: Path) -> None:
        """Copies every node's logs, for a post-mortem."""
        for machine in self.all.values():
            for logs in machine.home.glob("n-*/logs"):
                shutil.copytree(logs, place / machine.name / logs.parent.name, dirs_exist_ok=True)

    def close(self) -> None:
        for machine in reversed(self.all.values()):
            machine.close()
        if self._redis is not None:
            self._redis.kill()
            self._redis.wait()
        shutil.rmtree(self.base, ignore_errors=True)
