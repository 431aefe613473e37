"""Pub/sub: who listens to which channel, and what each has still to be sent.

A subscriber that does not keep up is cut; it subscribes again and starts from a snapshot. Nobody else waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from .v1 import gcs_pb2 as pb

MAX_QUEUED_EVENTS = 100_000  # Limit: for each subscriber
MAX_QUEUED_BYTES = 64 << 20  # Limit: for each subscriber
MAX_MESSAGE_BYTES = 256 << 10  # Limit: several events are one message below it; a larger one goes alone
MAX_CHANNELS = 200_000  # Limit: for each subscriber; a raylet has one for each actor that its workers hold


class Subscriber:
    """`wake` is called when the queue is no longer empty, or the subscriber was cut. `several`: it takes more than one event in a message."""

    __slots__ = ("channels", "cut", "queue", "queued_bytes", "several", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.channels: set[str] = set()
        self.queue: deque[bytes] = deque()
        self.queued_bytes = 0
        self.cut = ""
        self.several = False
        self.wake = wake

    def push(self, event: bytes) -> None:
        if self.cut:
            return
        if len(self.queue) >= MAX_QUEUED_EVENTS or self.queued_bytes + len(event) > MAX_QUEUED_BYTES:
            self.cut = f"{len(self.queue)} events ({self.queued_bytes} bytes) wait unread: subscribe again and start from a snapshot"
            self.queue.clear()
            self.queued_bytes = 0
            self.wake()
            return
        self.queue.append(event)
        self.queued_bytes += len(event)
        if len(self.queue) == 1:
            self.wake()

    def pop(self) -> bytes | None:
        """The next message: a message costs far more than an event, on both sides."""
        if not self.queue:
            return None
        first = self._pop()
        size, more = len(first), []
        while self.several and self.queue and (size := size + len(self.queue[0])) <= MAX_MESSAGE_BYTES:
            more.append(self._pop())
        return first + pb.PackedEvents(more=more).SerializeToString() if more else first

    def _pop(self) -> bytes:
        event = self.queue.popleft()
        self.queued_bytes -= len(event)
        return event


class Hub:
    """`snapshot` gives what a channel's new subscriber is told first."""

    def __init__(self, snapshot: Callable[[str], list[bytes]]) -> None:
        self._snapshot = snapshot
        self._channels: dict[str, set[Subscriber]] = {}
        self._sequence = 0
        self.subscribers: set[Subscriber] = set()
        self.published = 0
        self.cut = 0

    def join(self, subscriber: Subscriber) -> None:
        self.subscribers.add(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        self.subscribers.discard(subscriber)
        self.remove(subscriber, list(subscriber.channels))

    def add(self, subscriber: Subscriber, channels: Iterable[str]) -> None:
        for channel in channels:
            if len(subscriber.channels) >= MAX_CHANNELS and channel not in subscriber.channels:
                self._drop(subscriber, f"more than {MAX_CHANNELS} channels for one subscriber")
                return
            subscriber.channels.add(channel)
            self._channels.setdefault(channel, set()).add(subscriber)
            for payload in self._snapshot(channel):
                subscriber.push(self._event(channel, payload))

    def remove(self, subscriber: Subscriber, channels: Iterable[str]) -> None:
        for channel in channels:
            subscriber.channels.discard(channel)
            listeners = self._channels.get(channel)
            if listeners is not None:
                listeners.discard(subscriber)
                if not listeners:
                    del self._channels[channel]

    def publish(self, channel: str, payload: bytes) -> None:
        listeners = self._channels.get(channel)
        if not listeners:
            return
        event = self._event(channel, payload)
        self.published += 1
        for subscriber in list(listeners):
            subscriber.push(event)
            if subscriber.cut:
                self._drop(subscriber, subscriber.cut)

    def _drop(self, subscriber: Subscriber, why: str) -> None:
        self.cut += 1
        subscriber.cut = why
        self.leave(subscriber)
        subscriber.wake()

    def _event(self, channel: str, payload: bytes) -> bytes:
        self._sequence += 1
        event: bytes = pb.Event(channel=channel, payload=payload, sequence=self._sequence).SerializeToString()
        return event
