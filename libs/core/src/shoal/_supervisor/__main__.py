"""python -m shoal._supervisor CONFIG_FD REPORT_FD OWNER_FD: one node, until its owner ends. Started by init() and by `shoal start`.

CONFIG_FD is read to its end: the configuration, as JSON. REPORT_FD gets one JSON line: what was started, or why not. OWNER_FD is a pidfd, or -1: the node ends
with that process.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys


def main(argv: list[str]) -> int:
    gc.disable()  # imports leave nothing to collect; services.loaded() enables it again
    try:
        config_fd, report_fd, owner_fd = map(int, argv)
    except ValueError:
        print(__doc__, file=sys.stderr)
        return 2
    for fd in (report_fd, owner_fd):
        if fd >= 0:
            os.set_inheritable(fd, False)
    # Before it is read: whoever started us finds out about this machine meanwhile.
    from . import services
    from .config import NodeConfig, Started
    from .supervisor import Supervisor

    services.load_for_workers()
    with open(config_fd, "rb") as file:
        data = file.read()
    if not data:
        return 0  # whoever started us has ended
    config = NodeConfig.from_json(data)

    def report(started: Started) -> None:
        with contextlib.suppress(OSError):
            os.write(report_fd, started.to_line())
        os.close(report_fd)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1, 2):  # whoever called must not wait for the end of our output
            os.dup2(null, fd)

    return Supervisor(config, owner_fd, report_fd).run(report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
