"""Pools of resources: the node's own, and one for each bundle of a placement group."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping

from shoal_base.resources import UNIT, Resources, add, fits, show, subtract

CPU = "CPU"
GPU = "GPU"


class Allocation:
    """What was taken from a pool for one lease, actor or bundle. `lent`: the CPUs given back while its worker is blocked."""

    __slots__ = ("gpus", "lent", "pool", "released", "resources")

    def __init__(self, pool: Pool, resources: Resources, gpus: Resources) -> None:
        self.pool = pool
        self.resources = resources
        self.gpus = gpus
        self.lent = 0
        self.released = False

    def release(self) -> None:
        """Idempotent."""
        if not self.released:
            self.released = True
            self.pool.take_back(self)

    def returns(self) -> Mapping[str, int]:
        """What its end would free: a blocked worker's CPUs are free already."""
        if not self.lent:
            return self.resources
        return {name: units - (self.lent if name == CPU else 0) for name, units in self.resources.items()}

    def lend_cpu(self) -> bool:
        """Gives the CPUs back for now. False: there are none to give."""
        cpus = self.resources.get(CPU, 0)
        if self.lent or not cpus or self.released:
            return False
        self.lent = cpus
        self.pool.free[CPU] = self.pool.free.get(CPU, 0) + cpus
        return True

    def resume_cpu(self) -> None:
        """Takes the CPUs again, even when somebody else has them now: then the node is over-subscribed until a task ends."""
        if self.lent and not self.released:
            self.pool.free[CPU] -= self.lent
            self.lent = 0


class Pool:
    """Totals and what is free. `gpus` maps each device to its free units, so that a fraction never straddles two devices.

    Invariant: free is never below zero, but for CPUs that a worker took again after it was blocked.
    """

    __slots__ = ("free", "gpus", "taken", "total")

    def __init__(self, total: Mapping[str, int], gpus: Mapping[str, int] | None = None) -> None:
        self.total: Resources = dict(total)
        self.free: Resources = dict(total)
        self.gpus: Resources = dict(gpus or {})
        self.taken = 0

    def allocate(self, need: Mapping[str, int]) -> Allocation | None:
        if not fits(need, self.free):
            return None
        gpus: Resources = {}
        if need.get(GPU) and self.gpus:
            picked = pick_gpus(need[GPU], self.gpus)
            if picked is None:
                return None
            gpus = picked
            subtract(self.gpus, gpus)
        subtract(self.free, need)
        self.taken += 1
        return Allocation(self, dict(need), gpus)

    def take_back(self, allocation: Allocation) -> None:
        add(self.free, allocation.resources)
        if allocation.lent:
            self.free[CPU] -= allocation.lent
        add(self.gpus, allocation.gpus)
        self.taken -= 1

    def could(self, need: Mapping[str, int]) -> bool:
        """Whether it would fit if nothing else were here."""
        return fits(need, self.total)

    def available(self) -> Resources:
        return {name: max(0, units) for name, units in self.free.items()}


def pick_gpus(units: int, free: Mapping[str, int]) -> Resources | None:
    """Whole devices first, then the fullest device that still has room for the fraction.

    >>> pick_gpus(5000, {"0": 10000, "1": 7000})
    {'1': 5000}
    >>> pick_gpus(20000, {"0": 10000, "1": 7000}) is None
    True
    """
    whole, part = divmod(units, UNIT)
    empty = [gpu for gpu, left in free.items() if left >= UNIT]
    if len(empty) < whole:
        return None
    picked = dict.fromkeys(empty[:whole], UNIT)
    if part:
        rest = [(left, gpu) for gpu, left in free.items() if left >= part and gpu not in picked]
        if not rest:
            return None
        picked[min(rest)[1]] = part
    return picked


class BundleState(enum.Enum):
    PREPARED = "prepared"
    COMMITTED = "committed"
    REMOVED = "removed"


class Bundle:
    """A part of a placement group on this node: its own pool, carved out of the node's."""

    __slots__ = ("allocation", "group", "index", "pool", "prepared_at", "state")

    def __init__(self, group: bytes, index: int, allocation: Allocation, now: float) -> None:
        self.group = group
        self.index = index
        self.allocation = allocation
        self.pool = Pool(allocation.resources, allocation.gpus)
        self.state = BundleState.PREPARED
        self.prepared_at = now

    def remove(self) -> None:
        """The resources go back to the node once the last lease in it has ended: a device is not lent twice."""
        self.state = BundleState.REMOVED
        self.settle()

    def settle(self) -> bool:
        if self.state is BundleState.REMOVED and self.pool.taken == 0:
            self.allocation.release()
            return True
        return False


class Bundles:
    """All bundles of this node, by group and index."""

    def __init__(self, node: Pool) -> None:
        self._node = node
        self._groups: dict[bytes, dict[int, Bundle]] = {}
        self._dying: list[Bundle] = []

    def prepare(self, group: bytes, wanted: Mapping[int, Mapping[str, int]], now: float) -> str:
        """All or nothing, idempotent. Returns why not, or an empty text."""
        made: list[Bundle] = []
        here = self._groups.get(group, {})
        for index, resources in wanted.items():
            if index in here:
                continue
            allocation = self._node.allocate(resources)
            if allocation is None:
                for bundle in made:
                    bundle.remove()
                return f"bundle {index} needs {show(resources)}; this node has {show(self._node.available())} free of {show(self._node.total)}"
            made.append(Bundle(group, index, allocation, now))
        if made:
            self._groups.setdefault(group, {}).update({bundle.index: bundle for bundle in made})
        return ""

    def commit(self, group: bytes, indexes: list[int]) -> list[int]:
        """Returns the indexes that are not here (a lost or expired preparation)."""
        here = self._groups.get(group, {})
        missing = [index for index in indexes if index not in here]
        if not missing:
            for index in indexes:
                here[index].state = BundleState.COMMITTED
        return missing

    def remove(self, group: bytes, indexes: list[int] | None = None) -> list[Bundle]:
        """Takes them out of use; no indexes: the whole group. Those with leases in them settle later."""
        here = self._groups.get(group, {})
        gone = [here.pop(index) for index in (indexes or list(here)) if index in here]
        if gone and not here:
            del self._groups[group]
        for bundle in gone:
            bundle.remove()
            if bundle.pool.taken:
                self._dying.append(bundle)
        return gone

    def settle(self) -> None:
        if self._dying:
            self._dying = [bundle for bundle in self._dying if not bundle.settle()]

    def expired(self, before: float) -> list[Bundle]:
        return [bundle for bundle in self.usable() if bundle.state is BundleState.PREPARED and bundle.prepared_at < before]

    def pools(self, group: bytes, index: int) -> list[Pool]:
        """The committed pools that a wish for this group may use; index -1: any bundle."""
        here = self._groups.get(group, {})
        asked = here.values() if index < 0 else [here[index]] if index in here else []
        return [bundle.pool for bundle in asked if bundle.state is BundleState.COMMITTED]

    def usable(self) -> Iterator[Bundle]:
        """Prepared or committed, not those that only wait for their leases' end."""
        for bundles in self._groups.values():
            yield from bundles.values()

    def holds(self, group: bytes) -> bool:
        return group in self._groups

    def all(self) -> Iterator[Bundle]:
        yield from self.usable()
        yield from self._dying
