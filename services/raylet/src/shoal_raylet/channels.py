"""Events for local clients: one subscription of the raylet serves all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

from shoal_base.wire import Event

# Limit: last events kept for late subscribers.
MAX_LAST_EVENTS = 50_000
# Channels whose last event is the whole truth; others carry many keys, or none that lasts.
_LATEST_IS_ALL = ("actor:",)
# State of many keys: a late subscriber needs the GCS's snapshot, or the raylet's own.
_SNAPSHOTS = ("actors", "jobs", "nodes", "pgs", "resources")


class Subscriber(Protocol):
    channels: set[str]

    def send_event(self, packed: bytes) -> None: ...


class Upstream(Protocol):
    def subscribe(self, channels: list[str]) -> None: ...
    def unsubscribe(self, channels: list[str]) -> None: ...
    def snapshot_again(self, channel: str) -> None: ...


class Channels:
    """Who listens to what. `own`: channels that the raylet itself needs, never given up."""

    def __init__(self, upstream: Upstream, own: Iterable[str], on_own: Callable[[str, bytes], None]) -> None:
        self._upstream = upstream
        self._own = frozenset(own)
        self._on_own = on_own
        self._listeners: dict[str, dict[int, Subscriber]] = {}
        self._last: OrderedDict[str, bytes] = OrderedDict()
        upstream.subscribe(sorted(self._own))

    def add(self, subscriber: Subscriber, channels: Iterable[str]) -> None:
        new = []
        for channel in channels:
            if channel in subscriber.channels:
                continue
            subscriber.channels.add(channel)
            listeners = self._listeners.setdefault(channel, {})
            known = bool(listeners) or channel in self._own
            listeners[id(subscriber)] = subscriber
            if not known:
                new.append(channel)
            elif channel.startswith(_LATEST_IS_ALL):
                if (payload := self._last.get(channel)) is not None:
                    subscriber.send_event(Event(channel, payload).pack())
            elif channel in _SNAPSHOTS:
                self._upstream.snapshot_again(channel)
        self._upstream.subscribe(new)

    def remove(self, subscriber: Subscriber, channels: Iterable[str]) -> None:
        gone = []
        for channel in list(channels):
            if channel not in subscriber.channels:
                continue
            subscriber.channels.discard(channel)
            listeners = self._listeners[channel]
            listeners.pop(id(subscriber), None)
            if not listeners:
                del self._listeners[channel]
                self._last.pop(channel, None)
                if channel not in self._own:
                    gone.append(channel)
        self._upstream.unsubscribe(gone)

    def drop(self, subscriber: Subscriber) -> None:
        self.remove(subscriber, set(subscriber.channels))

    def publish(self, channel: str, payload: bytes) -> None:
        """An event came from the GCS."""
        if channel in self._own:
            self._on_own(channel, payload)
        listeners = self._listeners.get(channel)
        if not listeners:
            return
        if channel.startswith(_LATEST_IS_ALL):
            self._last[channel] = payload
            self._last.move_to_end(channel)
            if len(self._last) > MAX_LAST_EVENTS:
                self._last.popitem(last=False)
        packed = Event(channel, payload).pack()
        for subscriber in list(listeners.values()):
            subscriber.send_event(packed)
