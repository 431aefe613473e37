"""Owners that are dead: their objects are freed here, once whoever goes on with some of them had time to pin those. No I/O, no clock.

The raylet tells of each end as it comes, and of all that it remembers to a store that begins. So a store that was killed before it had freed what the dead left
learns of them again, and what was freed already is not found a second time.
"""

from __future__ import annotations

from collections import OrderedDict

# Limit: dead owners that are remembered, of either kind. What somebody pinned for longer than ten thousand deaths ends with the node.
MAX_REMEMBERED = 10_000


class Owners:
    def __init__(self, grace_s: float) -> None:
        """A borrower learns of the death too; who hears it by a closed connection alone waits a second for the raylet's word."""
        self._grace_s = grace_s
        self._workers: OrderedDict[bytes, float] = OrderedDict()
        self._nodes: OrderedDict[bytes, float] = OrderedDict()

    def worker_died(self, worker_id: bytes, at: float) -> None:
        _remember(self._workers, worker_id, at)

    def node_died(self, node_id: bytes, at: float) -> None:
        _remember(self._nodes, node_id, at)

    def dead(self, at: float) -> tuple[frozenset[bytes], frozenset[bytes]]:
        """Workers and nodes whose grace is over.

        >>> owners = Owners(grace_s=5.0)
        >>> owners.worker_died(b"w" * 16, at=1.0)
        >>> owners.dead(at=3.0), owners.dead(at=6.0)
        ((frozenset(), frozenset()), (frozenset({b'wwwwwwwwwwwwwwww'}), frozenset()))
        """
        until = at - self._grace_s
        return _since(self._workers, until), _since(self._nodes, until)


def _remember(table: OrderedDict[bytes, float], key: bytes, at: float) -> None:
    if any(key):
        table.setdefault(key, at)
        while len(table) > MAX_REMEMBERED:
            table.popitem(last=False)


def _since(table: OrderedDict[bytes, float], until: float) -> frozenset[bytes]:
    return frozenset(key for key, at in table.items() if at <= until)
