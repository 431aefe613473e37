"""What this process knows of placement groups: their states arrive as events, so that waiting for one asks nobody."""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict

from . import _runtime

CHANNEL = "pgs"
CREATED, REMOVED = 1, 2
# Limit: groups remembered as removed, for waits that come late.
_MAX_REMOVED = 10_000
# A wait that hears nothing for so long asks the control store: the creation may have failed on its way.
ASK_AFTER_S = 1.0


class Groups:
    """One for each connection. `heard` is called on the control thread, the rest from anywhere."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._states: dict[bytes, int] = {}
        self._removed: OrderedDict[bytes, None] = OrderedDict()

    def heard(self, _channel: str, payload: bytes) -> None:
        from shoal_gcs.v1 import gcs_pb2

        group = gcs_pb2.PlacementGroup.FromString(payload)
        self.note(bytes(group.placement_group_id), group.state)

    def note(self, group_id: bytes, state: int) -> None:
        with self._changed:
            if state == REMOVED:
                self._states.pop(group_id, None)
                self._removed[group_id] = None
                if len(self._removed) > _MAX_REMOVED:
                    self._removed.popitem(last=False)
            else:
                self._states[group_id] = state
            self._changed.notify_all()

    def state(self, group_id: bytes) -> int | None:
        """None: nothing was heard of it."""
        with self._changed:
            return REMOVED if group_id in self._removed else self._states.get(group_id)

    def wait(self, group_id: bytes, timeout: float) -> int | None:
        """The state once it is CREATED or REMOVED, or as it is after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                state = REMOVED if group_id in self._removed else self._states.get(group_id)
                left = deadline - time.monotonic()
                if state in (CREATED, REMOVED) or left <= 0:
                    return state
                self._changed.wait(left)


_tables: weakref.WeakKeyDictionary[object, Groups] = weakref.WeakKeyDictionary()  # by connection, which must not live on for it: its arena is mapped
_unconnected = Groups()
_lock = threading.Lock()


def of_connection() -> Groups:
    """The table of this connection; it listens from its first use on."""
    control = _runtime.state.control
    if control is None:
        return _unconnected
    with _lock:
        groups = _tables.get(control)
        if groups is None:
            groups = _tables[control] = Groups()
            control.listen(CHANNEL, groups.heard)
        return groups
