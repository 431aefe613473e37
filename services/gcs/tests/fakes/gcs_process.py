"""A control store as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class Process:
    """`python -m shoal_gcs`, its first line read from the ready descriptor."""

    def __init__(self, tmp_path: Path, *arguments: str) -> None:
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "shoal_gcs", "--secrets-dir", str(tmp_path / "secrets"), "--ready-fd", str(writer), *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(command, pass_fds=[writer], env=environment, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        with os.fdopen(reader) as ready:
            line = ready.readline()
        self.ready: dict[str, Any] = json.loads(line) if line else {}
        self.address: str = self.ready.get("address", "")

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """The exit status and what it said on stderr."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self.ended()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """As `end`, for one that ends by itself."""
        said = self._process.communicate(timeout=20)[1]
        return self._process.returncode, said
