"""Machines that see each other only through the relay: a namespace each, joined by veth pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from .namespaces import Namespace, Refused, ip, whole_frames
from .relay import Rules, Way, cable, mac

# Large frames, since the relay is one Python process.
MTU = 30_000
_END_S = 10.0


def address(machine: int) -> str:
    return f"10.77.0.{machine}"


class Network:
    """Raises Refused where the kernel or this user cannot have one."""

    def __init__(self, machines: list[int], seed: int) -> None:
        self.rules = Rules()
        self.counts: dict[str, int] = {}
        self.machines: dict[int, Namespace] = {}
        self._relay: subprocess.Popen[str] | None = None
        self.switch = Namespace()
        try:
            for number in machines:
                self.machines[number] = Namespace()
                self._plug_in(number)
            with self.switch.entered():
                command = [sys.executable, str(Path(__file__).with_name("relay.py")), json.dumps([list(self.machines), seed])]
                self._relay = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._answer()
        except BaseException:
            self.close()
            raise

    def _plug_in(self, number: int) -> None:
        name, inside = cable(number), self.machines[number]
        with self.switch.entered():
            ip("link", "add", name, "mtu", str(MTU), "type", "veth", "peer", "name", "eth0", "mtu", str(MTU))
            ip("link", "set", "eth0", "netns", inside.path)
            ip("link", "set", name, "up")
        with inside.entered():
            ip("link", "set", "eth0", "address", mac(number))
            whole_frames("eth0")
            ip("addr", "add", f"{address(number)}/24", "dev", "eth0")
            ip("link", "set", "eth0", "up")

    # -- what goes wrong -------------------------------------------------------------------------------

    def apply(self) -> None:
        """The rules as they are now hold when it returns."""
        relay = self._relay
        if relay is None or relay.stdin is None:
            raise RuntimeError("the network is closed")
        relay.stdin.write(self.rules.to_line() + "\n")
        relay.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        relay = self._relay
        line = relay.stdout.readline() if relay is not None and relay.stdout is not None else ""
        if not line:
            raise Refused("the relay did not start; its error is above")
        self.counts = json.loads(line)

    def ways(self, one: int) -> list[Way]:
        """From one machine to each other, and back."""
        return [way for other in self.machines if other != one for way in ((one, other), (other, one))]

    def unplug(self, number: int) -> None:
        """The machine notices: it has no network any more."""
        with self.machines[number].entered():
            ip("link", "set", "eth0", "down")

    def plug_in(self, number: int) -> None:
        with self.machines[number].entered():
            ip("link", "set", "eth0", "up")

    def heal(self) -> None:
        self.rules = Rules()
        self.apply()

    def close(self) -> None:
        if self._relay is not None:
            relay, self._relay = self._relay, None
            if relay.stdin is not None:
                relay.stdin.close()
            try:
                relay.wait(_END_S)
            except subprocess.TimeoutExpired:
                relay.kill()
                relay.wait()
            if relay.stdout is not None:
                relay.stdout.close()
        for namespace in (*self.machines.values(), self.switch):
            namespace.close()
        self.machines = {}
