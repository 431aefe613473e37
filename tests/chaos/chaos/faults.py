"""Each kind of fault: how it is done, how it is undone, how one sees that the cluster has noticed, and what must work again afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time

from .machines import MEMORY_THRESHOLD, Machine, Machines, wait_until
from .program import Program
from .relay import Way
from .schedule import Event, Kind

WORKER_S = 20.0
# Longer than a head's term.
_LEAD_S = 4.0
# In /proc/PID/stat, counted from the state.
_FLAGS, _PF_EXITING = 6, 0x4


class Skipped(Exception):
    """There was nothing to break."""


class Fault:
    """`probe`: what must work again ("task" on the machine, "actor" by its name). `loses_node`: its objects and actors with it."""

    probe = "task"
    loses_node = False
    # Everything else goes on, for as long as it takes.
    stops_a_program = False
    # Of two heads, with a Redis server.
    needs_standby = False
    # Whether recovery counts from the fault's beginning (something must take the place of what is lost) or from its end.
    recovers_at_once = False

    def __init__(self, machines: Machines, event: Event) -> None:
        self.machines = machines
        self.event = event
        self.network = machines.network
        self.number = machines.leading() if on(event.kind) == "head" else event.machine
        self.machine: Machine = machines.all[self.number]
        self.node_id = machines.node_id(self.number) if self.loses_node else ""
        self.began: float | None = None  # when it is known better than by the call of `begin`

    def prepare(self) -> None:
        """What is to be broken, where the cluster does not have it anyway."""

    def begin(self) -> None:
        raise NotImplementedError

    def question(self) -> list[str]:
        """The probe."""
        return ["actor"] if self.probe == "actor" else ["task", self.machine.name]

    def check(self) -> None:
        """That nothing else is wrong when it is over. Raises AssertionError."""

    def close(self) -> None:
        """Also after a failure."""

    def end(self) -> None:
        """Only for those that last."""

    def noticed(self) -> bool | None:
        """None: nobody has to notice."""
        return self.machines.is_dead(self.node_id) if self.loses_node and self.node_id else None


class _Killed(Fault):
    recovers_at_once = True

    def begin(self) -> None:
        self.pid = self._victim()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def _victim(self) -> int:
        raise NotImplementedError


class WorkerKilled(_Killed):
    def _victim(self) -> int:
        try:
            found = wait_until(self.machine.workers, "a worker", WORKER_S)  # a node that has just come back has none yet
        except TimeoutError:
            raise Skipped(f"{self.machine.name} had no worker for {WORKER_S:g} s") from None
        return found[self.event.choice % len(found)]

    def noticed(self) -> bool | None:
        pids = self.machines.worker_pids(self.number)
        return pids is not None and self.pid not in pids


class _ServiceKilled(_Killed):
    service = ""

    def _victim(self) -> int:
        pid = self.machine.service(self.service)
        if pid is None:
            raise Skipped(f"{self.machine.name} runs no {self.service} now")
        return pid

    def noticed(self) -> bool | None:
        return self.machine.service(self.service) not in (None, self.pid)


class StoreKilled(_ServiceKilled):
    service = "store"


class GcsKilled(_ServiceKilled):
    service = "gcs"
    probe = "actor"


class RayletKilled(_ServiceKilled):
    service = "raylet"
    loses_node = True
    noticed = Fault.noticed


class _Stopped(Fault):
    def begin(self) -> None:
        self.pid = self._victim()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    _victim = _ServiceKilled._victim
    service = ""


class WorkerStopped(_Stopped):
    _victim = WorkerKilled._victim  # type: ignore[assignment]


class WorkerStoppedLong(WorkerStopped):
    """Others go on; what it ran ends when it goes on."""

    stops_a_program = True


class StoreStopped(_Stopped):
    service = "store"


class GcsStopped(_Stopped):
    service = "gcs"
    probe = "actor"


class RayletStopped(_Stopped):
    """For less than the node's lease: it goes on as if nothing had been."""

    service = "raylet"


class RayletStoppedLong(_Stopped):
    """For longer than its lease: it is dead, finds out when it goes on, and comes back as a new node."""

    service = "raylet"
    loses_node = True


class NodeKilled(Fault):
    """All its processes; the host answers that nobody listens."""

    loses_node = True

    def begin(self) -> None:
        self.machine.kill_all()

    def end(self) -> None:
        self.machines.start(self.number)


class HeadLost(NodeKilled):
    """The machine whose control store leads; the other head takes over. It comes back to stand by."""

    probe = "actor"
    needs_standby = True
    recovers_at_once = True

    def prepare(self) -> None:
        """After another fault the lead may be about to change hands."""
        wait_until(self._leads_on, "a head to lead for a while")
        self.machine = self.machines.all[self.number]
        self.node_id = self.machines.node_id(self.number)

    def _leads_on(self) -> bool:
        self.number = self.machines.leading()
        time.sleep(min(_LEAD_S, self.machines.lease_s / 2))
        return self.machines.leading() == self.number

    def begin(self) -> None:
        self._led = self.machines.times_led(self.number)
        self.machines.cut(self.network.ways(self.number))
        super().begin()

    def end(self) -> None:
        self.machines.join(self.network.ways(self.number))
        super().end()

    def noticed(self) -> bool | None:
        return self.machines.times_led(self.number) > self._led


class HostLost(NodeKilled):
    """Nobody answers in its place."""

    def begin(self) -> None:
        self.machines.cut(self.network.ways(self.number))
        super().begin()

    def end(self) -> None:
        self.machines.join(self.network.ways(self.number))
        super().end()


class LinkCut(Fault):
    """The machine sees that its cable is out; shorter than the lease."""

    def begin(self) -> None:
        self.network.unplug(self.number)

    def end(self) -> None:
        self.network.plug_in(self.number)


class LinkCutLong(LinkCut):
    loses_node = True


class Partition(Fault):
    """Nothing comes through to the machine nor from it; shorter than the lease."""

    def ways(self) -> list[Way]:
        return self.network.ways(self.number)

    def begin(self) -> None:
        self.machines.cut(self.ways())

    def end(self) -> None:
        self.machines.join(self.ways())


class PartitionLong(Partition):
    loses_node = True


class PartitionOneWay(Partition):
    """It hears and is not heard, or the other way round."""

    def ways(self) -> list[Way]:
        return [way for way in super().ways() if way[self.event.choice % 2] == self.number]


class PartitionOneWayLong(PartitionOneWay):
    loses_node = True


class PartitionOfVictims(Partition):
    """The machines that may be lost see each other, and nobody else."""

    loses_node = True

    def ways(self) -> list[Way]:
        victims = self.machines.victims
        return [way for one in self.network.machines if one not in victims for other in victims for way in ((one, other), (other, one))]


class Delay(Fault):
    def begin(self) -> None:
        low = 0.01 + (self.event.choice % 10) / 100
        self.machines.slow(self.network.ways(self.number), (low, 2 * low))

    def end(self) -> None:
        self.machines.mend(self.network.ways(self.number))


class Loss(Fault):
    def begin(self) -> None:
        self.machines.lose(self.network.ways(self.number), 0.03 + (self.event.choice % 10) / 100)

    def end(self) -> None:
        self.machines.mend(self.network.ways(self.number))


class Repeats(Fault):
    def begin(self) -> None:
        self.machines.repeat(self.network.ways(self.number), 0.3)

    def end(self) -> None:
        self.machines.mend(self.network.ways(self.number))


class DiskFull(Fault):
    """Where the node spills to; nothing that is stored may be lost."""

    def begin(self) -> None:
        block = bytes(1 << 20)
        with open(self.machine.ballast, "wb", buffering=0) as file:
            try:
                while file.write(block):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def end(self) -> None:
        self.machine.ballast.unlink(missing_ok=True)


class _Visit(Fault):
    """What happens to a driver that came for it."""

    def prepare(self) -> None:
        self._rounds: list[dict[str, object]] = []
        self.detached = f"stays-{self.event.number}"
        self.visitor = Program(self.machines, self.machine.number, "visitor", [self.machines.gcs_address, self.detached], self._rounds.append)
        if not self._round():
            raise AssertionError("what the visitor had put was not what it got")

    def _round(self, bound_s: float = 90.0) -> bool:
        """A round of puts and gets, from its beginning to its end."""
        before = len(self._rounds)
        self.visitor.tell("round")
        wait_until(lambda: len(self._rounds) > before, "a round of the visitor", bound_s)
        return bool(self._rounds[-1]["right"])

    def question(self) -> list[str]:
        return ["detached", self.detached]

    def close(self) -> None:
        if visitor := getattr(self, "visitor", None):
            visitor.process.kill()
            visitor.end()


class DriverKilled(_Visit):
    """In the middle of puts and gets: its job, its actors and its tasks end; the detached actor stays."""

    recovers_at_once = True

    def begin(self) -> None:
        self.visitor.tell("round")
        os.kill(self.visitor.process.pid, signal.SIGKILL)

    def noticed(self) -> bool | None:
        jobs = {row["job_id"]: row["status"] for row in self.machines.rows("jobs")}
        return jobs.get(self.visitor.ready["job"]) in ("SUCCEEDED", "FAILED", "STOPPED")

    def check(self) -> None:
        wait_until(lambda: not any(_lives(pid) for pid in self.visitor.ready["pids"]), "the actors of the killed driver to end", 30.0)


class DriverStopped(_Visit):
    """Others go on meanwhile; it goes on where it was."""

    stops_a_program = True

    def begin(self) -> None:
        self.visitor.tell("round")
        os.kill(self.visitor.process.pid, signal.SIGSTOP)

    def end(self) -> None:
        os.kill(self.visitor.process.pid, signal.SIGCONT)
        wait_until(lambda: len(self._rounds) > 1, "the visitor to go on", 90.0)
        if not all(row["right"] for row in self._rounds):
            raise AssertionError("what the visitor had put was not what it got, after it had been stopped")

    def check(self) -> None:
        status = self.visitor.end()
        if status != 0:
            raise AssertionError(f"the visitor that had been stopped ended with {status}: {self.visitor.words()}")


class ArenaFull(Fault):
    """A client reads all that its store has room for: nothing can be spilled, and puts wait until it reads no more."""

    def prepare(self) -> None:
        self._rows: list[dict[str, float]] = []
        self.filler = Program(self.machines, self.machine.number, "filler", [self.machines.gcs_address], self._rows.append)

    def begin(self) -> None:
        """It is full."""

    def end(self) -> None:
        self.filler.tell("drop")

    def check(self) -> None:
        wait_until(lambda: self._rows, "the put that had waited for room to end", 10.0)
        status = self.filler.end()
        if status != 0:
            raise AssertionError(f"the client that had filled the store ended with {status}: {self.filler.words()}")

    def close(self) -> None:
        if filler := getattr(self, "filler", None):
            filler.process.kill()
            filler.end()


class ClientKilled(ArenaFull):
    """In a put that waits for room, with all the store in its hands: both come back, and others' puts go on."""

    recovers_at_once = True

    def begin(self) -> None:
        os.kill(self.filler.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """It has ended."""

    def check(self) -> None:
        """Nobody else was harmed: the workload tells."""


class MemoryShort(Fault):
    """A task takes what the machine has: it is ended and, since it may be, tried again. Its beginning is when the machine became short."""

    recovers_at_once = True

    def begin(self) -> None:
        if self.machine.group is None:
            raise Skipped("no control group with a limit (v1) can be made here")
        self.file = self.machines.base / f"hog-{self.event.number}"

    def question(self) -> list[str]:
        return ["hog", self.machine.name, str(MEMORY_THRESHOLD), str(self.file)]

    def noticed(self) -> bool | None:
        if not self.file.exists():
            return False
        pid, when = self.file.read_text().split()
        self.began = float(when)
        return _ends(int(pid))


def _stat(pid: int) -> list[str]:
    """Its state and what follows in /proc; empty when it has gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _lives(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX"


def _ends(pid: int) -> bool:
    """Its end has begun: until it has gone the kernel may need seconds for each GB that it held."""
    fields = _stat(pid)
    return not fields or fields[0] in "ZX" or bool(int(fields[_FLAGS]) & _PF_EXITING)


FAULTS: dict[str, type[Fault]] = {
    "worker killed": WorkerKilled,
    "worker stopped": WorkerStopped,
    "store killed": StoreKilled,
    "store stopped": StoreStopped,
    "control store killed": GcsKilled,
    "control store stopped": GcsStopped,
    "raylet stopped, shortly": RayletStopped,
    "link cut, shortly": LinkCut,
    "partition, shortly": Partition,
    "partition one way, shortly": PartitionOneWay,
    "head cut off, shortly": Partition,
    "delay": Delay,
    "loss": Loss,
    "repeats": Repeats,
    "disk full": DiskFull,
    "arena full": ArenaFull,
    "client killed": ClientKilled,
    "raylet killed": RayletKilled,
    "raylet stopped": RayletStoppedLong,
    "node killed": NodeKilled,
    "host lost": HostLost,
    "link cut": LinkCutLong,
    "partition": PartitionLong,
    "partition one way": PartitionOneWayLong,
    "partition of two": PartitionOfVictims,
    "worker stopped, long": WorkerStoppedLong,
    "driver stopped": DriverStopped,
    "driver killed": DriverKilled,
    "memory short": MemoryShort,
    "head lost": HeadLost,
}
_ON = dict.fromkeys(("control store killed", "control store stopped", "head cut off, shortly", "head lost"), "head")
_ON |= dict.fromkeys(("driver stopped", "driver killed"), "home")
_ANYWHERE = (
    "worker killed", "worker stopped", "store killed", "store stopped", "delay", "loss", "repeats", "disk full", "arena full", "client killed", "memory short",
    "worker stopped, long",
)  # fmt: skip
ON_ALL = ("partition of two",)
_AT_ONCE = ("worker killed", "store killed", "control store killed", "raylet killed", "driver killed", "client killed", "memory short")


def on(name: str) -> str:
    """Whom it hits: "head" (the machine whose control store leads), "home" (the drivers'), "any", "victim"."""
    return _ON.get(name) or ("any" if name in _ANYWHERE else "victim")


def kinds(lease_s: float, names: list[str] | None = None, *, standby: bool = False) -> list[Kind]:
    """Their durations follow the nodes' lease: what is short must not end a node, what is long must; a process may be stopped for longer still."""
    short, long, lasting = (0.05 * lease_s, 0.35 * lease_s), (1.5 * lease_s, 2.2 * lease_s), (1.5 * lease_s, 3.0 * lease_s)
    found = []
    for name, fault in FAULTS.items():
        if (names is not None and name not in names) or (fault.needs_standby and not standby):
            continue
        lasts = (0.0, 0.0) if name in _AT_ONCE else lasting if fault.stops_a_program else long if fault.loses_node else short
        found.append(Kind(name, on(name), lasts, name in ON_ALL))
    return found
