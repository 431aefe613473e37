"""python -m shoal_raylet: one raylet, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shoal_base import logs
from shoal_base.auth import AuthenticationFailed
from shoal_base.processes import become_subreaper, raise_descriptor_limit

from .config import Config, parse
from .rpc import RpcFailed
from .server import Raylet

_log = logging.getLogger("shoal_raylet")
# Limit: from being told to end to the end of the process.
END_WITHIN_S = 10.0


def tell_ready(fd: int, message: dict[str, Any]) -> None:
    """One JSON line to whoever started us, once."""
    if fd >= 0:
        with contextlib.suppress(OSError):
            os.write(fd, json.dumps(message).encode() + b"\n")
            os.close(fd)


async def serve(config: Config) -> int:
    """Serves until stopped; the exit status."""
    raylet = Raylet(config)
    loop = asyncio.get_running_loop()
    try:
        await raylet.start()
    except (OSError, RpcFailed, ValueError, AuthenticationFailed) as error:
        _log.error("cannot start: %s", error)
        tell_ready(config.ready_fd, {"error": f"the raylet cannot start: {error}"})
        await raylet.close("it could not start")
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, raylet.stop, f"got {number.name}")
    _log.info("node %s serves at %s", raylet.node_id.hex(), raylet.address)
    tell_ready(config.ready_fd, {"address": raylet.address, "node_id": raylet.node_id.hex(), "pid": os.getpid()})
    reason = await raylet.stopped()
    if config.own_process:
        # Bounded, whatever hangs: where every thread stood is in the log then.
        faulthandler.dump_traceback_later(END_WITHIN_S, exit=True)
    _log.info("ends: %s", reason)
    await raylet.close(reason)
    return 1 if raylet.exit_error else 0


def run(config: Config) -> int:
    """For a process of its own, forked or executed: never returns before the raylet has ended."""
    raise_descriptor_limit()
    if config.own_process:
        become_subreaper()
    directory = Path(config.node_dir) / "logs"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        logs.setup("raylet", directory, config.log_level, config.log_encoding)
    except (OSError, ValueError) as error:
        tell_ready(config.ready_fd, {"error": f"the raylet cannot write its logs: {error}"})
        return 1
    try:
        import uvloop
    except ImportError:
        return asyncio.run(serve(config))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config))


def main(argv: Sequence[str] | None = None) -> int:
    return run(parse(argv))


if __name__ == "__main__":
    sys.exit(main())
