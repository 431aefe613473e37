"""python -m shoal_gcs: one control store, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

from shoal_base import logs

from .config import Config, parse
from .leadership import GaveUp
from .server import CannotStart, Server
from .storage import Led, StorageError

# The writer thread must win the interpreter's lock back from a busy event loop within a write's own time.
SWITCH_INTERVAL_S = 0.0005
_log = logging.getLogger("shoal_gcs")


def tell_ready(fd: int, message: dict[str, Any]) -> None:
    """One JSON line to whoever started us, once."""
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.write(fd, json.dumps(message).encode() + b"\n")
            os.close(fd)


async def serve(config: Config) -> int:
    """Serves until SIGTERM or SIGINT; the exit status."""
    ready_fd = config.ready_fd

    def standing_by(led: Led) -> None:
        nonlocal ready_fd
        tell_ready(ready_fd, {"address": server.address, "leader": led.address, "cluster_id": led.cluster_id.hex(), "pid": os.getpid()})
        ready_fd = -1

    server = Server(config, on_standing_by=standing_by)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    try:
        await server.start()
    except GaveUp:
        _log.info("ends; it has stood by")
        return 0
    except CannotStart as error:
        _log.error("cannot start: %s", error)
        print(f"shoal-gcs cannot start: {error}", file=sys.stderr)
        tell_ready(ready_fd, {"error": f"the control store cannot start: {error}"})
        return 1
    assert server.service is not None
    opened = server.service.opened
    _log.info("serves at %s, epoch %d of cluster %s", server.address, opened.epoch, opened.cluster_id.hex())
    tell_ready(ready_fd, {"address": server.address, "epoch": opened.epoch, "cluster_id": opened.cluster_id.hex(), "pid": os.getpid()})
    if config.ready_fd < 0:
        print(f"shoal-gcs serves at {server.address}", flush=True)
    try:
        await server.stopped()
    except StorageError as error:
        print(f"shoal-gcs ends: {error}", file=sys.stderr)
        return 1
    finally:
        await server.close()
    _log.info("ends")
    return 0


def run(config: Config) -> int:
    """For a process of its own, forked or executed: returns when the control store has ended."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _raise_descriptor_limit()
    logs.setup("gcs", config.log_dir, config.log_level, config.log_encoding)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve(config))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config))


def main(argv: Sequence[str] | None = None) -> int:
    return run(parse(argv))


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
