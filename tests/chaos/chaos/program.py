"""Programs of the harness's own on its machines."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from .machines import Machines

READY_S = 90.0


class Program:
    """A driver on a machine that speaks lines of JSON; `on_row` is called on a thread of its own. `ready`: what it said first."""

    def __init__(self, machines: Machines, number: int, module: str, arguments: list[str], on_row: Callable[[dict[str, Any]], None]) -> None:
        self.output = machines.base / f"{module}.err"
        self.ready: dict[str, Any] = {}
        self._ready = threading.Event()
        self._on_row = on_row
        command = [sys.executable, "-m", f"chaos.{module}", *arguments]
        with open(self.output, "wb") as errors:
            self.process = machines.all[number].inside(
                lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(READY_S) or self.process.poll() is not None:
            self.process.kill()
            raise RuntimeError(f"{module} did not start: {self.words()}")

    def words(self) -> str:
        return self.output.read_text(errors="replace")[-2000:]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                row = json.loads(line)
            except ValueError:  # it was killed in the middle of it
                continue
            if "ready" in row:
                self.ready = row
                self._ready.set()
            else:
                self._on_row(row)
        self._ready.set()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self, bound_s: float = 30.0) -> int:
        """Its exit status; killed when it does not end in time. Idempotent."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            status = self.process.wait(bound_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._reader.join(10.0)
        self.process.stdout.close()
        return status
