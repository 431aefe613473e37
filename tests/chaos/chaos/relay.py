"""The switch between the machines, in user space: it hands frames from one machine's cable to another's, and on the way loses, delays and repeats them.

A process of its own, started inside the namespace that holds the other ends of all cables. `{"cut": [[1, 2]], ...}` on standard input, a line each,
replaces all rules; each line is answered with what was done so far. (The kernel's netem queue does the same and is missing on many machines.)
"""

from __future__ import annotations

import heapq
import json
import os
import random
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

ETH_P_ALL = 3
PACKET_IGNORE_OUTGOING = 23
SOL_PACKET = 263
FRAME_BYTES = 1 << 16
# Limit: of a cable's queue in the kernel, and of the frames that are on their way here. What does not fit is lost, as in any switch.
QUEUE_BYTES = 64 << 20
MAX_UNDER_WAY = 50_000
# Frames read of one cable before the others have their turn.
TURN = 64

Way = tuple[int, int]  # from machine, to machine


def cable(machine: int) -> str:
    """The name of a machine's cable at the switch."""
    return f"m{machine}"


def mac(machine: int) -> str:
    return f"02:00:00:00:00:{machine:02x}"


@dataclass
class Rules:
    """What happens to frames. A way that is not named is as good as a cable can be."""

    cut: set[Way] = field(default_factory=set)
    delay_s: dict[Way, tuple[float, float]] = field(default_factory=dict)  # at least, at most
    lost: dict[Way, float] = field(default_factory=dict)  # part of the frames
    repeated: dict[Way, float] = field(default_factory=dict)

    def to_line(self) -> str:
        return json.dumps(
            {
                "cut": sorted(self.cut), "delay_s": [[*way, *range_] for way, range_ in sorted(self.delay_s.items())],
                "lost": [[*way, part] for way, part in sorted(self.lost.items())], "repeated": [[*way, part] for way, part in sorted(self.repeated.items())],
            }
        )  # fmt: skip

    @classmethod
    def from_line(cls, line: str) -> Rules:
        raw = json.loads(line)
        return cls(
            cut={(a, b) for a, b in raw["cut"]}, delay_s={(a, b): (low, high) for a, b, low, high in raw["delay_s"]},
            lost={(a, b): part for a, b, part in raw["lost"]}, repeated={(a, b): part for a, b, part in raw["repeated"]},
        )  # fmt: skip


class Lanes:
    """When each frame arrives, decided without clock and sockets: time is passed in, chance comes from a seed."""

    def __init__(self, machines: list[int], seed: int) -> None:
        self.rules = Rules()
        self.machines = machines
        self.counts = {"passed": 0, "lost": 0, "repeated": 0}
        self._random = random.Random(seed)
        self._free: dict[Way, float] = {}

    def targets(self, source: int, frame: bytes) -> list[int]:
        if frame[0] & 1:  # to everybody
            return [machine for machine in self.machines if machine != source]
        target = frame[5]
        return [target] if target in self.machines and target != source else []

    def arrivals(self, source: int, target: int, now: float) -> list[float]:
        """When copies of a frame reach the target: none when it is lost. A cable keeps the order of its frames."""
        way, rules = (source, target), self.rules
        if way in rules.cut or self._random.random() < rules.lost.get(way, 0.0):
            self.counts["lost"] += 1
            return []
        low, high = rules.delay_s.get(way, (0.0, 0.0))
        when = max(self._free.get(way, 0.0), now + low + (high - low) * self._random.random())
        self._free[way] = when
        self.counts["passed"] += 1
        if self._random.random() < rules.repeated.get(way, 0.0):
            self.counts["repeated"] += 1
            return [when, when]
        return [when]


class Switch:
    def __init__(self, machines: list[int], seed: int) -> None:
        self.lanes = Lanes(machines, seed)
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self._selector = selectors.DefaultSelector()
        self._sockets = {machine: self._open(machine) for machine in machines}
        self._selector.register(sys.stdin, selectors.EVENT_READ, 0)
        self._input = b""

    def _open(self, machine: int) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        for force, plain in ((33, socket.SO_RCVBUF), (32, socket.SO_SNDBUF)):  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
            try:
                sock.setsockopt(socket.SOL_SOCKET, force, QUEUE_BYTES)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, plain, QUEUE_BYTES)
        sock.bind((cable(machine), 0))
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, machine)
        return sock

    def run(self) -> None:
        """Until standard input ends."""
        while True:
            pause = max(0.0, self._under_way[0][0] - time.monotonic()) if self._under_way else None
            for key, _ in self._selector.select(pause):
                if key.data == 0:
                    if not self._obey():
                        return
                else:
                    self._read(key.data)
            self._deliver()

    def _obey(self) -> bool:
        data = os.read(0, 1 << 16)
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            self.lanes.rules = Rules.from_line(line.decode())
            print(json.dumps(self.lanes.counts), flush=True)
        return bool(data)

    def _read(self, source: int) -> None:
        sock, lanes, now = self._sockets[source], self.lanes, time.monotonic()
        for _ in range(TURN):
            try:
                frame = sock.recv(FRAME_BYTES)
            except (BlockingIOError, OSError):  # a cable that was pulled out says so once
                return
            for target in lanes.targets(source, frame):
                for when in lanes.arrivals(source, target, now):
                    if when <= now and not self._under_way:
                        self._send(target, frame)
                    elif len(self._under_way) < MAX_UNDER_WAY:
                        self._number += 1
                        heapq.heappush(self._under_way, (when, self._number, target, frame))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._under_way and self._under_way[0][0] <= now:
            _, _, target, frame = heapq.heappop(self._under_way)
            self._send(target, frame)

    def _send(self, target: int, frame: bytes) -> None:
        try:
            self._sockets[target].send(frame)
        except OSError:  # its queue is full, or the cable is pulled out: lost
            self.lanes.counts["lost"] += 1


if __name__ == "__main__":
    machines, seed = json.loads(sys.argv[1])
    switch = Switch(machines, seed)
    print("{}", flush=True)
    switch.run()
