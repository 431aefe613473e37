"""python -m shoal_objectstore: one node's store, until it is told to end or its raylet has gone; `serve`: a store of its own, without a cluster."""

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

from ._arena import ArenaError
from .config import Config, parse
from .join import JoinFailed
from .server import ObjectStore

_log = logging.getLogger("shoal_objectstore")


def tell_ready(fd: int, message: dict[str, Any]) -> None:
    """One JSON line to whoever started us, once."""
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.write(fd, json.dumps(message).encode() + b"\n")
            os.close(fd)


def raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(config: Config, memory_bytes: int = 0) -> int:
    """Serves until stopped; the exit status. With `memory_bytes`: alone, an arena of its own."""
    store = ObjectStore(config)
    if memory_bytes:
        from .alone import AloneStore

        store = AloneStore(config, memory_bytes)
    loop = asyncio.get_running_loop()
    try:
        await store.start()
    except (OSError, ValueError, JoinFailed, ArenaError) as error:
        _log.error("cannot start: %s", error)
        tell_ready(config.ready_fd, {"error": f"the object store cannot start: {error}"})
        await store.close()
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, store.stop, f"got {number.name}")
    address = str(config.node_dir / "store.sock")
    _log.info("the store of node %s serves at %s: %d bytes", config.node_id.hex(), address, store.keeper.store.capacity_bytes)
    tell_ready(config.ready_fd, {"address": address, "node_id": config.node_id.hex(), "pid": os.getpid()})
    reason = await store.stopped()
    _log.info("ends: %s", reason)
    await store.close()
    return 0


def run(config: Config, memory_bytes: int = 0) -> int:
    """For a process of its own, forked or executed: returns when the store has ended."""
    raise_descriptor_limit()
    (config.node_dir / "logs").mkdir(mode=0o700, parents=bool(memory_bytes), exist_ok=True)
    logs.setup("objectstore", config.node_dir / "logs", config.log_level, config.log_encoding)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve(config, memory_bytes))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config, memory_bytes))


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["serve"]:
        from .alone import parse_serve

        return run(*parse_serve(given[1:]))
    return run(parse(given))


if __name__ == "__main__":
    sys.exit(main())
