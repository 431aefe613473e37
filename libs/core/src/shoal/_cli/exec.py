"""shoal exec, shoal attach: commands and a shell on the head of a file's cluster."""

from __future__ import annotations

import shlex
import sys

import click

from .launching import cluster_file, name_option, opened

_forwards = click.option("-p", "--port-forward", multiple=True, type=click.IntRange(1, 65535), help="A port of the head that appears here, too. Repeatable.")
_start = click.option("--start", is_flag=True, help="`shoal up` before.")


@click.command("exec")
@cluster_file
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_start
@click.option("--stop", is_flag=True, help="`shoal down` after, however the command ends.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@_forwards
@name_option
def exec_command(file: str, command: tuple[str, ...], start: bool, stop: bool, tty: bool, port_forward: tuple[int, ...], cluster_name: str | None) -> None:
    """Run COMMAND on the head of the cluster of FILE, with this command's input and output; its exit code is passed on.

    One word is text for the shell; several are a command with its arguments, and come after `--` when one of them begins with a dash.
    """
    text = command[0] if len(command) == 1 else shlex.join(command)
    sys.exit(_run(file, text, cluster_name, start=start, stop=stop, terminal=tty, forwards=port_forward))


@click.command("attach")
@cluster_file
@_start
@_forwards
@name_option
def attach_command(file: str, start: bool, port_forward: tuple[int, ...], cluster_name: str | None) -> None:
    """A shell on the head of the cluster of FILE, in which `shoal` commands and `shoal.init()` go to this cluster."""
    sys.exit(_run(file, 'exec "${SHELL:-bash}"', cluster_name, start=start, stop=False, terminal=True, forwards=port_forward))


def _run(file: str, text: str, cluster_name: str | None, *, start: bool, stop: bool, terminal: bool, forwards: tuple[int, ...]) -> int:
    with opened(file, cluster_name) as launcher:
        if forwards and launcher.config.provider == "local":
            raise click.UsageError("--port-forward is for machines over SSH: the ports of type local are this machine's own")
        if start:
            launcher.up(restart="never")
        try:
            return launcher.head().run(text, terminal=terminal, forwards=forwards)
        finally:
            if stop:
                launcher.down()
