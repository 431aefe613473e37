"""shoal stop: this user's nodes on this host."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

import click

from .cluster import running_nodes

# After a forced end the janitor still removes files.
_CLEAN_UP_S = 5.0


class _Ending:
    """A supervisor that is to end."""

    def __init__(self, pid: int, cluster_dir: str) -> None:
        self.pid = pid
        self.cluster_dir = cluster_dir
        self.fd = os.pidfd_open(pid)

    def tell(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, number)

    def ended(self, deadline: float) -> bool:
        return bool(select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0])


@click.command("stop")
@click.option("-f", "--force", is_flag=True, help="Kill at once instead of asking.")
@click.option("-g", "--grace-period", type=float, default=16.0, show_default=True, help="Seconds to wait before killing what has not ended.")
@click.option("--temp-dir", default=None, help="Where nodes' files lie; default: $SHOAL_TMPDIR or /tmp/shoal-UID.")
def stop_command(force: bool, grace_period: float, temp_dir: str | None) -> None:
    """End the nodes that `shoal start` started on this host, as this user. Private clusters of init() end with their programs."""
    endings = []
    # Heads last: a node that leaves in good order says goodbye to its head.
    for node in reversed(running_nodes(temp_dir)):
        with contextlib.suppress(ProcessLookupError):
            endings.append(_Ending(node.supervisor_pid, node.cluster_dir))
    if not endings:
        click.echo("No node of `shoal start` runs here.")
        return
    deadline = time.monotonic() + (0 if force else grace_period)
    killed = 0
    for ending in endings:
        if not force:
            ending.tell(signal.SIGTERM)
            if ending.ended(deadline):
                continue
        killed += 1
        ending.tell(signal.SIGKILL)
        ending.ended(time.monotonic() + _CLEAN_UP_S)
    _wait_gone([ending.cluster_dir for ending in endings])
    click.echo(f"Stopped {len(endings)} node{'s' if len(endings) > 1 else ''}" + (f", {killed} of them by force." if killed else "."))


def _wait_gone(directories: list[str]) -> None:
    """Until janitors have removed what killed supervisors left."""
    deadline = time.monotonic() + _CLEAN_UP_S
    while any(os.path.exists(directory) for directory in directories):
        if time.monotonic() > deadline:
            left = ", ".join(directory for directory in directories if os.path.exists(directory))
            raise click.ClickException(f"the nodes have ended, but their files are still there: {left}")
        time.sleep(0.02)
