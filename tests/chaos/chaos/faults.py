"""Each kind of fault: how it is done, how it is undone, how one sees that the cluster has noticed, and what must work again afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import signal

from .machines import HEAD, HOME, Machine, Machines
from .relay import Way
from .schedule import Event, Kind


class Skipped(Exception):
    """There was nothing to break."""


class Fault:
    """`probe`: what must work again ("task" on the machine, "actor" by its name). `loses_node`: its objects and actors with it."""

    probe = "task"
    loses_node = False
    # Whether recovery counts from the fault's beginning (something must take the place of what is lost) or from its end.
    recovers_at_once = False

    def __init__(self, machines: Machines, event: Event) -> None:
        self.machines = machines
        self.event = event
        self.network = machines.network
        self.machine: Machine = machines.all[event.machine]
        self.node_id = machines.node_id(event.machine) if self.loses_node else ""

    def begin(self) -> None:
        raise NotImplementedError

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
        found = self.machine.workers()
        if not found:
            raise Skipped(f"{self.machine.name} has no worker now")
        return found[self.event.choice % len(found)]

    def noticed(self) -> bool | None:
        rows = self.machines.rows("workers")
        return bool(rows) and self.pid not in {row["pid"] for row in rows}


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
        self.machines.start(self.event.machine)


class HostLost(NodeKilled):
    """Nobody answers in its place."""

    def begin(self) -> None:
        self.machines.cut(self.network.ways(self.event.machine))
        super().begin()

    def end(self) -> None:
        self.machines.join(self.network.ways(self.event.machine))
        super().end()


class LinkCut(Fault):
    """The machine sees that its cable is out; shorter than the lease."""

    def begin(self) -> None:
        self.network.unplug(self.event.machine)

    def end(self) -> None:
        self.network.plug_in(self.event.machine)


class LinkCutLong(LinkCut):
    loses_node = True


class Partition(Fault):
    """Nothing comes through to the machine nor from it; shorter than the lease."""

    def ways(self) -> list[Way]:
        return self.network.ways(self.event.machine)

    def begin(self) -> None:
        self.machines.cut(self.ways())

    def end(self) -> None:
        self.machines.join(self.ways())


class PartitionLong(Partition):
    loses_node = True


class PartitionOneWay(Partition):
    """It hears and is not heard, or the other way round."""

    def ways(self) -> list[Way]:
        return [way for way in super().ways() if way[self.event.choice % 2] == self.event.machine]


class PartitionOneWayLong(PartitionOneWay):
    loses_node = True


class PartitionOfVictims(Partition):
    """The machines that may be lost see each other, and nobody else."""

    loses_node = True

    def ways(self) -> list[Way]:
        return [way for one in (HEAD, HOME) for other in self.machines.victims for way in ((one, other), (other, one))]


class Delay(Fault):
    def begin(self) -> None:
        low = 0.01 + (self.event.choice % 10) / 100
        self.machines.slow(self.network.ways(self.event.machine), (low, 2 * low))

    def end(self) -> None:
        self.machines.mend(self.network.ways(self.event.machine))


class Loss(Fault):
    def begin(self) -> None:
        self.machines.lose(self.network.ways(self.event.machine), 0.03 + (self.event.choice % 10) / 100)

    def end(self) -> None:
        self.machines.mend(self.network.ways(self.event.machine))


class Repeats(Fault):
    def begin(self) -> None:
        self.machines.repeat(self.network.ways(self.event.machine), 0.3)

    def end(self) -> None:
        self.machines.mend(self.network.ways(self.event.machine))


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
    "raylet killed": RayletKilled,
    "raylet stopped": RayletStoppedLong,
    "node killed": NodeKilled,
    "host lost": HostLost,
    "link cut": LinkCutLong,
    "partition": PartitionLong,
    "partition one way": PartitionOneWayLong,
    "partition of two": PartitionOfVictims,
}
_ON = {"control store killed": "head", "control store stopped": "head", "head cut off, shortly": "head"}
_ANYWHERE = ("worker killed", "worker stopped", "store killed", "store stopped", "delay", "loss", "repeats", "disk full")
_AT_ONCE = ("worker killed", "store killed", "control store killed", "raylet killed")


def kinds(lease_s: float, names: list[str] | None = None) -> list[Kind]:
    """Their durations follow the nodes' lease: what is short must not end a node, what is long must."""
    short, long = (0.05 * lease_s, 0.35 * lease_s), (1.5 * lease_s, 2.2 * lease_s)
    found = []
    for name, fault in FAULTS.items():
        if names is not None and name not in names:
            continue
        lasts = (0.0, 0.0) if name in _AT_ONCE else long if fault.loses_node else short
        on = _ON.get(name) or ("any" if name in _ANYWHERE else "victim")
        found.append(Kind(name, on, lasts))
    return found
