"""The supervisor of one node: starts the services, restarts what may be restarted, ends everything.

One thread, one `select`, no polling: it wakes for signals, ready pipes, its owner's pidfd, the HTTP listener's first visitor, and the timers of restarts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from shoal_base import __version__, logs
from shoal_base.processes import become_subreaper, describe_exit

from . import directories, services
from .children import Child, fork_service, kill, kill_descendants, reap
from .config import NodeConfig, Started
from .janitor import fork_janitor
from .ports import bind_listener, free_port, is_taken
from .secrets import prepare_secrets
from .spawn import MARKER

_log = logging.getLogger("shoal.supervisor")

# A service that lived this long starts with a clean record.
STEADY_S = 60.0
FIRST_PAUSE_S, MOST_PAUSE_S = 0.05, 5.0
# Limit: failures of one service in a row before the node gives up.
MAX_FAILURES = 10
# A free port found for the GCS may be taken by somebody else before the GCS has it.
PORT_ATTEMPTS = 3
# How long a service may take to end by itself.
SERVICE_GRACE_S = 1.0
_KILL_TIMEOUT_S = 4.0
# Limit: a ready line.
_LINE_BYTES = 1 << 16


class StartFailed(Exception):
    """Why the node does not come up: one message for whoever called."""


class Record(msgspec.Struct):
    """One service's failures in a row."""

    failures: int = 0
    timer: float = 0.0
    history: list[str] = msgspec.field(default_factory=list)

    def failed(self, cause: str, lived_s: float, now: float, limit: int = MAX_FAILURES) -> bool:
        """Plans the next start; False: that was one too many."""
        self.failures = 1 if lived_s > STEADY_S else self.failures + 1
        self.history = [*self.history, cause][-3:]
        self.timer = now + min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.failures - 1))
        return self.failures <= limit


class Supervisor:
    def __init__(self, config: NodeConfig, owner: int = -1, report_fd: int = -1) -> None:
        self.config = config
        self.owner = owner  # pidfd
        self._report_fd = report_fd
        self.base = Path(config.base)
        self.children: dict[str, Child] = {}
        self.records: dict[str, Record] = {}
        self.ending = ""
        self.exit_status = 0
        self.janitor = -1
        self.gcs_port = config.port
        self.node_address = ""
        self.cluster_id = ""  # hex, once the control store has told it
        self.started_ms = int(time.time() * 1000)
        self._selector = selectors.DefaultSelector()
        self._wake: tuple[int, int] = (-1, -1)
        self._lock: directories.HeldFile | None = None
        self._node_file: directories.HeldFile | None = None
        self._http: socket.socket | None = None
        self._zygote: tuple[int, socket.socket] | None = None  # its pid and socket, until a raylet has them

    # -- life -------------------------------------------------------------------------------------

    def run(self, report: Callable[[Started], None]) -> int:
        """Until the node has ended; the exit status. `report` is called once."""
        try:
            self._prepare()
            self._start()
        except StartFailed as error:
            self.end("the start failed", 1)
            self._clean_up()
            report(Started(error=str(error)))
            return self.exit_status
        except BaseException:
            self.end("the start failed", 1)
            self._clean_up()
            raise
        report(self._started())
        self._report_fd = -1
        try:
            while not self.ending:
                self._step(self._next_timer())
                self._run_timers()
        finally:
            self._clean_up()
        return self.exit_status

    def end(self, reason: str, status: int = 0) -> None:
        if not self.ending:
            _log.info("ends: %s", reason)
            self.ending = reason
            self.exit_status = status

    def _prepare(self) -> None:
        become_subreaper()
        name = os.environ.setdefault(MARKER, os.urandom(6).hex())
        self.cluster_dir = self.base / f"c-{name}"
        self.janitor = fork_janitor(self.base, self.cluster_dir)
        try:
            directories.make_directory(self.base, "c", name)
            self._lock = directories.HeldFile(self.cluster_dir / directories.LOCK_FILE, str(os.getpid()))
            directories.sweep(self.base)
            self.secrets_dir = prepare_secrets(self.config, self.cluster_dir)
            self._make_node(first=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise StartFailed(f"the node's directory in {self.base} cannot be prepared: {error}") from error
        self._catch_signals()
        if self.owner >= 0:
            self._selector.register(self.owner, selectors.EVENT_READ, self._owner_died)
        self._open_http()

    def _make_node(self, first: bool = False) -> None:
        """A new node id and its directory."""
        self.node_id = os.urandom(16).hex()
        with open(self.cluster_dir / "nodes", "a") as file:  # before it exists: the janitor must know of it
            file.write(f"n-{self.node_id[:12]}\n")
        self.node_dir = directories.make_directory(self.base, "n", self.node_id[:12])
        self._write_node_file(ready=False)
        (self.node_dir / "logs").mkdir(mode=0o700, exist_ok=True)
        if first and not self.config.worker_command:
            self._fork_zygote()
        logs.setup("supervisor", self.node_dir / "logs", self.config.log_level, self.config.log_encoding)
        self.places = services.Places(
            self.node_id, self.node_dir, self.cluster_dir, self.secrets_dir, self._gcs_addresses(), self.http_address, self.cluster_id
        )  # fmt: skip
        self.config.labels["shoal.io/node-id"] = self.node_id

    def _gcs_addresses(self) -> list[str]:
        if not self.config.head:
            return self.config.gcs_addresses
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return [f"{host}:{self.gcs_port}"]

    @property
    def http_address(self) -> str:
        if self._http is None:
            return ""
        host, port = self._http.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _open_http(self) -> None:
        """Listens for the HTTP server, which is forked when somebody first connects."""
        if not (self.config.head and self.config.http):
            return
        try:
            self._http = bind_listener(self.config.http_host, self.config.http_port)
        except OSError as error:
            raise StartFailed(
                f"port {self.config.http_port} on {self.config.http_host}, for HTTP, cannot be listened on: {error.strerror or error}; "
                "choose another with --http-port (0: any free one)"
            ) from error
        self.places.http_address = self.http_address
        self._selector.register(self._http, selectors.EVENT_READ, self._http_wanted)

    # -- starting ---------------------------------------------------------------------------------

    def _fork_zygote(self) -> None:
        """Before grpc is imported and before logging and signals are set up: workers are forked from it. It imports its half while we import ours."""
        ours, theirs = socket.socketpair()

        def run(ready_fd: int) -> int:
            os.close(ready_fd)  # it says on its socket when it is ready
            return services.run_zygote(self.config, theirs.detach())

        with theirs:
            child = fork_service("zygote", run, self.node_dir / "logs" / "zygote.log", [*self._own_descriptors(), ours.fileno()])
        child.close()
        self._zygote = (child.pid, ours)

    def _start(self) -> None:
        services.load()
        deadline = time.monotonic() + self.config.start_timeout_s
        for attempt in range(PORT_ATTEMPTS):
            try:
                self._start_services(deadline)
                break
            except StartFailed:
                lost_port = self.config.head and self.config.port == 0 and is_taken(self.config.host, self.gcs_port)
                if not lost_port or attempt + 1 == PORT_ATTEMPTS:
                    raise
                self._stop_services()
        services.loaded()
        self._write_node_file(ready=True)

    def _start_services(self, deadline: float) -> None:
        if self.config.head and self.config.port == 0:
            self.gcs_port = free_port(self.config.host)
            self.places.gcs_addresses = self._gcs_addresses()
        # All at once, the one first that takes longest: the raylet tries the GCS until it answers, the store waits for the raylet's socket.
        self._fork("raylet")
        if self.config.head:
            self._fork("gcs")
        self._fork("objectstore")
        self._wait_ready(deadline)

    def _fork(self, name: str) -> Child:
        zygote = self._zygote
        run = {
            "gcs": lambda fd: services.run_gcs(self.config, self.places, self.gcs_port, fd),
            "raylet": lambda fd: services.run_raylet(self.config, self.places, zygote and (zygote[0], zygote[1].detach()), fd),
            "objectstore": lambda fd: services.run_store(self.config, self.places, fd),
            "http": lambda fd: services.run_http(self.config, self.places, self._http.fileno() if self._http else -1, fd),
        }[name]
        child = fork_service(name, run, self.node_dir / "logs" / f"{name}.err", self._own_descriptors(keep_http=name == "http", keep_zygote=name == "raylet"))
        self.children[name] = child
        if name == "raylet" and zygote is not None:
            zygote[1].close()
            self._zygote = None
        self._selector.register(child.ready_fd, selectors.EVENT_READ, lambda: self._ready_readable(child))
        return child

    def _own_descriptors(self, keep_http: bool = False, keep_zygote: bool = False) -> list[int]:
        """What a fork must not keep: an inherited lock would outlive us, an inherited epoll would be shared with us."""
        own = [self.owner, self._report_fd, *self._wake, self._selector.fileno() if hasattr(self._selector, "fileno") else -1]
        own += [held.fd for held in (self._lock, self._node_file) if held is not None]
        own += [child.ready_fd for child in self.children.values()]
        if self._http is not None and not keep_http:
            own.append(self._http.fileno())
        if self._zygote is not None and not keep_zygote:
            own.append(self._zygote[1].fileno())
        return [fd for fd in own if fd >= 0]

    def _wait_ready(self, deadline: float) -> None:
        """Until every child has said that it serves. Raises StartFailed with what the first one says that does not."""
        while any(child.ready_fd >= 0 for child in self.children.values()):
            left = deadline - time.monotonic()
            if left <= 0:
                slow = [child for child in self.children.values() if child.ready_fd >= 0]
                words = "; ".join(filter(None, (child.last_words() for child in slow))) or "they wrote nothing"
                raise StartFailed(f"{', '.join(child.name for child in slow)} did not serve within {self.config.start_timeout_s:g} s: {words}")
            self._step(left)
            if self.ending:
                raise StartFailed(f"the start was given up: {self.ending}")
            self._check_started()

    def _check_started(self) -> None:
        # First those that said why, then those that merely ended: one failure often ends another.
        told = sorted(self.children.values(), key=lambda child: (not child.line, child.name != "gcs"))
        for child in told:
            answer = _parse(child.line)
            if error := answer.get("error"):
                raise StartFailed(str(error))
        for child in told:
            if child.status is not None:
                words = child.last_words()
                raise StartFailed(f"{child.name} ended while it started ({describe_exit(child.status)}){': ' + words if words else ''}")

    def _ready_readable(self, child: Child) -> None:
        try:
            data = os.read(child.ready_fd, _LINE_BYTES)
        except BlockingIOError:
            return
        child.line += data
        if data and b"\n" not in child.line and len(child.line) < _LINE_BYTES:
            return
        self._selector.unregister(child.ready_fd)
        child.close()
        if child.name == "gcs" and self.config.storage != "memory":
            # From now on another cluster's records, or none, are an error: state is not discarded by a restart.
            self.cluster_id = self.places.cluster_id = _parse(child.line).get("cluster_id", self.cluster_id)
        if child.name == "raylet":
            self.node_address = _parse(child.line).get("address", self.node_address)
            if self._node_file is not None and self.records.get("raylet"):
                self._fork("objectstore")
                self._write_node_file(ready=True)

    # -- node.json --------------------------------------------------------------------------------

    def _write_node_file(self, ready: bool) -> None:
        text = self._describe().as_json() if ready else json.dumps({"starting": os.getpid()})
        if self._node_file is None:
            self._node_file = directories.HeldFile(self.node_dir / directories.NODE_FILE, text)
        else:
            self._node_file.write(text)

    def _describe(self) -> directories.NodeFile:
        config = self.config
        return directories.NodeFile(
            node_id=self.node_id, node_dir=str(self.node_dir), cluster_dir=str(self.cluster_dir), gcs_address=",".join(self.places.gcs_addresses),
            http_address=self.http_address, node_address=self.node_address, supervisor_pid=os.getpid(), head=config.head, private=config.private,
            owner_pid=config.owner_pid, node_name=config.node_name, started_ms=self.started_ms, version=__version__, secrets_dir=str(self.secrets_dir),
            resources=config.resources,
        )  # fmt: skip

    def _started(self) -> Started:
        return Started(
            node_id=self.node_id, node_dir=str(self.node_dir), gcs_address=",".join(self.places.gcs_addresses), http_address=self.http_address,
            node_address=self.node_address, cluster_dir=str(self.cluster_dir),
        )  # fmt: skip

    # -- events -----------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake = (reading, writing)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._selector.register(reading, selectors.EVENT_READ, self._signalled)

    def _step(self, timeout_s: float | None) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def _signalled(self) -> None:
        numbers = set(os.read(self._wake[0], 4096))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number in numbers:
                self.end(f"got {number.name}")
        if signal.SIGCHLD in numbers:
            self._reap()

    def _owner_died(self) -> None:
        self._selector.unregister(self.owner)
        self.end(f"its owner, process {self.config.owner_pid}, has ended")

    def _reap(self) -> None:
        for pid, status in reap():
            for child in list(self.children.values()):
                if child.pid == pid:
                    child.status = status
                    self._child_ended(child)

    def _child_ended(self, child: Child) -> None:
        if child.ready_fd >= 0:  # what it wrote before its end
            self._ready_readable(child)
        if child.ready_fd >= 0:
            self._selector.unregister(child.ready_fd)
            child.close()
        if self.ending or not self.node_address or self._node_file is None:
            return  # the start, or the end, looks at the status itself
        del self.children[child.name]
        cause = describe_exit(child.status or 0)
        if child.name == "raylet" and child.status == 0:
            self.end("its raylet was told to end")
            return
        _log.error("%s (pid %d) ended: %s; %s", child.name, child.pid, cause, child.last_words() or "it wrote nothing")
        record = self.records.setdefault(child.name, Record())
        error = _parse(child.line).get("error", "")
        now = time.monotonic()
        limit = self.config.settings.get("supervisor", {}).get("max_failures", MAX_FAILURES)
        if not record.failed(error or cause, now - child.started_at, now, limit):
            text = f"{child.name} failed {record.failures} times in a row, this node gives up: {'; '.join(record.history)}"
            _log.critical("%s", text)
            self.end(text, 1)
        elif child.name == "raylet":
            self._drop_node()

    # -- restarting -------------------------------------------------------------------------------

    def _next_timer(self) -> float | None:
        timers = [record.timer for record in self.records.values() if record.timer]
        return max(0.0, min(timers) - time.monotonic()) if timers else None

    def _run_timers(self) -> None:
        now = time.monotonic()
        for name, record in self.records.items():
            if record.timer and record.timer <= now and not self.ending:
                record.timer = 0.0
                self._restart(name)

    def _restart(self, name: str) -> None:
        _log.warning("%s is started again", name)
        if name == "http":
            assert self._http is not None
            self._selector.register(self._http, selectors.EVENT_READ, self._http_wanted)
            return
        if name == "objectstore" and ("raylet" not in self.children or self.children["raylet"].ready_fd >= 0):
            return  # it comes with the raylet
        if name == "raylet":
            try:
                self._renew_node()
            except OSError as error:
                self.end(f"no directory for the node's next life: {error}", 1)
                return
        self._fork(name)

    def _drop_node(self) -> None:
        """A dead raylet is a dead node: its store and its workers end with it."""
        store = self.children.pop("objectstore", None)
        if store is not None:
            if store.ready_fd >= 0:
                self._selector.unregister(store.ready_fd)
            store.close()
            kill(store.pid)
        if "objectstore" in self.records:
            self.records["objectstore"].timer = 0.0
        kill_descendants({child.pid for child in self.children.values()} | {self.janitor}, _KILL_TIMEOUT_S)

    def _renew_node(self) -> None:
        old, held = self.node_dir, self._node_file
        self._node_file = None
        self._make_node()
        # What the last life wrote is wanted most when it ended badly.
        for file in (old / "logs").iterdir():
            with contextlib.suppress(OSError):
                os.rename(file, self.node_dir / "logs" / f"{file.stem}.{old.name}{file.suffix}")
        if held is not None:
            held.release()
        directories.remove(old, far_wait_s=0.0)

    def _http_wanted(self) -> None:
        assert self._http is not None
        self._selector.unregister(self._http)
        self._fork("http")

    # -- the end ----------------------------------------------------------------------------------

    def _clean_up(self) -> None:
        """Ends every process below, removes every file. Idempotent, bounded."""
        try:
            if self._node_file is not None:
                with contextlib.suppress(OSError):  # from here on nobody attaches
                    os.unlink(self._node_file.path)
            self._stop_services()
            kill_descendants({self.janitor}, _KILL_TIMEOUT_S)
        finally:
            self._remove_files()
            if self.janitor > 0:
                kill(self.janitor)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(self.janitor, 0)

    def _stop_services(self) -> None:
        self._stop(["raylet"], self.config.grace_s)
        # A database that goes with the node needs no goodbye.
        gentle = [] if self.config.private or not self.config.storage else ["gcs"]
        for name in ("gcs", "objectstore", "http"):
            if name not in gentle and name in self.children:
                kill(self.children[name].pid)
        self._stop(["gcs", "objectstore", "http"], SERVICE_GRACE_S)

    def _stop(self, names: list[str], grace_s: float) -> None:
        waiting = [self.children[name] for name in names if name in self.children]
        for child in waiting:
            kill(child.pid, signal.SIGTERM)
        for child in waiting:
            if child.status is None and not _wait_exit(child, grace_s):
                _log.warning("%s (pid %d) did not end within %g s: killed", child.name, child.pid, grace_s)
                kill(child.pid)
                _wait_exit(child, _KILL_TIMEOUT_S)
            if child.ready_fd >= 0:
                self._selector.unregister(child.ready_fd)
                child.close()
            self.children.pop(child.name, None)

    def _remove_files(self) -> None:
        logging.shutdown()
        for attribute in ("node_dir", "cluster_dir"):
            if path := getattr(self, attribute, None):
                directories.remove(path)
        for held in (self._node_file, self._lock):
            if held is not None:
                held.release()
        directories.remove_if_empty(self.base)


def _wait_exit(child: Child, timeout_s: float) -> bool:
    """Waits for one child by its pidfd, and reaps it."""
    try:
        fd = os.pidfd_open(child.pid)
    except ProcessLookupError:
        return True
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                return False
    finally:
        os.close(fd)
    with contextlib.suppress(ChildProcessError):
        child.status = os.waitpid(child.pid, 0)[1]
    return True


def _parse(line: bytes) -> dict[str, str]:
    try:
        answer = json.loads(line) if line else {}
    except ValueError:
        return {"error": f"an unreadable answer: {line[:200]!r}"}
    return answer if isinstance(answer, dict) else {}
