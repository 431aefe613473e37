"""Cleans up after a supervisor that was killed: the one process that nothing above it can clean up after.

Forked before anything large is imported, it sleeps on the supervisor's pidfd. The services die by themselves (parent-death signal); what is left to do is
to end workers and what they started, and to remove the directories.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from pathlib import Path

from shoal_base.processes import set_name

from . import directories
from .children import kill_marked
from .spawn import MARKER

_ROUNDS = 100
_PAUSE_S = 0.02


def fork_janitor(base: Path, cluster_dir: Path) -> int:
    """Its pid. To be called before the supervisor opens anything."""
    supervisor = os.pidfd_open(os.getpid())
    pid = os.fork()
    if pid:
        os.close(supervisor)
        return pid
    try:
        _wait_and_clean(supervisor, base, cluster_dir)
    finally:
        os._exit(0)


def _wait_and_clean(supervisor: int, base: Path, cluster_dir: Path) -> None:
    set_name("shoal-janitor")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for fd in range(256):
        if fd != supervisor:
            with contextlib.suppress(OSError):
                os.close(fd)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd != null:
            os.dup2(null, fd)
    os.chdir("/")
    wait_for_end(supervisor)
    clean(base, cluster_dir)


def wait_for_end(pidfd: int) -> None:
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    while not waiting.poll():
        pass


def clean(base: Path, cluster_dir: Path) -> None:
    """Until nobody who belonged to it is found any more."""
    marker = f"{MARKER}={cluster_dir.name.removeprefix('c-')}".encode()
    for _ in range(_ROUNDS):
        if not kill_marked(marker):
            break
        time.sleep(_PAUSE_S)
    for node_dir in own_node_directories(base, cluster_dir):
        directories.remove(node_dir)
    shutil.rmtree(cluster_dir, ignore_errors=True)
    directories.remove_if_empty(base)


def own_node_directories(base: Path, cluster_dir: Path) -> list[Path]:
    """Those that the supervisor noted in its own directory."""
    try:
        names = (cluster_dir / "nodes").read_text().split()
    except OSError:
        return []
    return [base / name for name in names if name.startswith("n-") and "/" not in name]
