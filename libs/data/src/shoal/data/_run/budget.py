"""What may run now. Pure decisions: no clock, no cluster.

Bytes: blocks that wait between operators, and what running tasks are about to make, stay below a limit. CPUs: operators that stream into others leave one
for those after them, since a task that is held back keeps its CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

# Tasks beyond the CPUs, so that a worker finds its next one when it has ended one.
QUEUE_FACTOR = 2
# A running task makes one block while another waits to be taken.
BLOCKS_PER_TASK = 2


@dataclass
class Budget:
    """`limit_bytes` for blocks of this execution, `cpus` of the cluster (or of its options)."""

    limit_bytes: float
    cpus: float
    held_bytes: int = 0
    reserved_bytes: float = 0.0
    running: int = 0

    def block_bytes(self, target_bytes: int) -> int:
        """The size of blocks: `target_bytes`, or less where the limit would hold only a few of those."""
        at_once = BLOCKS_PER_TASK * max(1.0, self.cpus) + 2
        return max(1 << 16, min(target_bytes, int(self.limit_bytes / at_once)))

    def tasks_at_once(self, cpus_per_task: float, streams_into_tasks: bool) -> int:
        """How many tasks of one operator may be in flight."""
        if cpus_per_task <= 0:
            return int(max(1.0, self.cpus)) * QUEUE_FACTOR
        if streams_into_tasks:
            return max(1, int((self.cpus - 1) / cpus_per_task))
        return max(1, int(self.cpus * QUEUE_FACTOR / cpus_per_task))

    def admits(self, estimate_bytes: float) -> bool:
        """Whether one more task fits. One alone always may run: without it nothing would ever become free."""
        return self.running == 0 or self.held_bytes + self.reserved_bytes + estimate_bytes <= self.limit_bytes

    def takes(self, first_of_its_operator: bool, consumer_starves: bool) -> bool:
        """Whether an output that is ready is taken from its task now. The one that is next in order is, when whoever needs it has nothing else to do."""
        return self.held_bytes <= self.limit_bytes or (first_of_its_operator and consumer_starves)

    def started(self, estimate_bytes: float) -> None:
        self.running += 1
        self.reserved_bytes += estimate_bytes

    def ended(self, estimate_bytes: float) -> None:
        self.running -= 1
        self.reserved_bytes -= estimate_bytes


def actors_that_fit(wanted: int, cpus_per_actor: float, cpus: float, others: float) -> int:
    """How many actors of a pool can run when `others` CPUs must stay for other stages; 0: not even one."""
    if cpus_per_actor <= 0:
        return wanted
    return max(0, min(wanted, int((cpus - others) / cpus_per_actor + 1e-9)))
