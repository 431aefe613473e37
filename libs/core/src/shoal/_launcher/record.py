"""What was launched: one file for each cluster in the user's state directory, written under a lock.

    $XDG_STATE_HOME/shoal/clusters/NAME/    lock, record.json, token
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .machine import LauncherError
from .plan import Launched

# How long one command waits for another that changes the same cluster.
LOCK_TIMEOUT_S = 10.0
_LOCK_POLL_S = 0.05


class RecordBusy(LauncherError):
    """Another `shoal up` or `shoal down` is at work on this cluster."""


def state_directory() -> Path:
    given = os.environ.get("XDG_STATE_HOME", "")
    # As the specification says, a relative path is ignored.
    return Path(given if given.startswith("/") else Path.home() / ".local/state") / "shoal" / "clusters"


class Record:
    """Of one cluster. Every change is in the file before it is true on a machine, so that whoever is killed in between leaves a trace."""

    def __init__(self, name: str, directory: Path | None = None) -> None:
        self.name = name
        self.directory = (directory or state_directory()) / name
        self.path = self.directory / "record.json"
        self.provider = ""
        self.nodes: dict[str, Launched] = {}
        self._lock = threading.Lock()
        self._read()

    def _read(self) -> None:
        try:
            raw: Any = json.loads(self.path.read_text("utf-8"))
            known = {field.name for field in fields(Launched)}
            self.nodes = {key: Launched(**{name: value for name, value in node.items() if name in known}) for key, node in raw["nodes"].items()}
            self.provider = str(raw["provider"])
        except FileNotFoundError:
            self.nodes, self.provider = {}, ""
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LauncherError(f"{self.path} cannot be read: {error}; move it away, and stop the nodes with `shoal stop` on their machines") from error

    @property
    def token_path(self) -> Path:
        return self.directory / "token"

    @contextlib.contextmanager
    def locked(self, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Alone with this cluster, among this user's commands on this machine. Raises RecordBusy."""
        fd = self._take(time.monotonic() + timeout_s)
        try:
            self._read()
            yield
        finally:
            os.close(fd)

    def _take(self, deadline: float) -> int:
        while True:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # a `shoal down` took the folder away just now
                fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # Not of a folder that has been removed since.
                    if os.stat(self.directory / "lock").st_ino == os.fstat(fd).st_ino:
                        return fd
                    os.close(fd)
                    continue
                except BlockingIOError:
                    os.close(fd)
                except FileNotFoundError:
                    os.close(fd)
                    continue
            if time.monotonic() > deadline:
                raise RecordBusy(f"another command is at work on the cluster {self.name}; it holds {self.directory / 'lock'}")
            time.sleep(_LOCK_POLL_S)

    def note(self, key: str, node: Launched | None) -> None:
        """Writes one node's entry; None removes it. From any thread."""
        with self._lock:
            if node is None:
                self.nodes.pop(key, None)
            else:
                self.nodes[key] = node
            self._write()

    def _write(self) -> None:
        text = json.dumps({"provider": self.provider, "nodes": {key: asdict(node) for key, node in self.nodes.items()}}, indent=1)
        new = self.path.with_suffix(".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, self.path)

    def remove(self) -> None:
        """Everything that is kept of this cluster. Under the lock."""
        shutil.rmtree(self.directory, ignore_errors=True)
        for parent in (self.directory.parent, self.directory.parent.parent):
            with contextlib.suppress(OSError):
                parent.rmdir()
