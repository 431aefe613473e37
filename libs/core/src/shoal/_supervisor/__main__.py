"""python -m shoal._supervisor --config-fd N --report-fd N [--owner-fd N]: one node, until its owner ends."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys

from .config import NodeConfig, Started


def main() -> int:
    gc.disable()  # imports leave nothing to collect; services.load() enables it again
    parser = argparse.ArgumentParser(prog="python -m shoal._supervisor", description="Runs one node. Started by init() and by `shoal start`.")
    parser.add_argument("--config-fd", type=int, required=True, help="a descriptor to read the configuration from, as JSON")
    parser.add_argument("--report-fd", type=int, required=True, help="a descriptor for one JSON line: what was started, or why not")
    parser.add_argument("--owner-fd", type=int, default=-1, help="a pidfd: the node ends with that process")
    given = parser.parse_args()
    for fd in (given.report_fd, given.owner_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)
    # Before it is read: whoever starts us finds out about this machine meanwhile.
    from .supervisor import Supervisor

    with open(given.config_fd, "rb") as file:
        data = file.read()
    if not data:
        return 0  # whoever started us has ended
    config = NodeConfig.from_json(data)

    def report(started: Started) -> None:
        with contextlib.suppress(OSError):
            os.write(given.report_fd, started.to_line())
        os.close(given.report_fd)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1, 2):  # whoever called must not wait for the end of our output
            os.dup2(null, fd)

    return Supervisor(config, given.owner_fd).run(report)


if __name__ == "__main__":
    sys.exit(main())
