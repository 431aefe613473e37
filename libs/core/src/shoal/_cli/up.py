"""shoal up, shoal down: clusters described by a file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from .launching import cluster_file, name_option, opened, tell

if TYPE_CHECKING:
    from shoal._launcher.plan import Plan


@click.command("up")
@cluster_file
@click.option("-y", "--yes", is_flag=True, help="Do not ask before running nodes are stopped.")
@click.option("--no-restart", is_flag=True, help="Leave nodes that run as they are, even if their part of the file has changed.")
@click.option("--restart-only", is_flag=True, help="Start every node anew, and set up nothing.")
@name_option
def up_command(file: str, yes: bool, no_restart: bool, restart_only: bool, cluster_name: str | None) -> None:
    """Start the cluster of FILE, or bring it to what FILE says: what runs well is left alone, what is missing is started."""
    if no_restart and restart_only:
        raise click.UsageError("give --no-restart or --restart-only, not both")

    def confirm(plan: Plan) -> bool:
        for step in plan.stop:
            click.echo(f"To be stopped: {step.key} on {step.host}: {step.why}")
        return yes or _ask("Go on?")

    with opened(file, cluster_name) as launcher:
        plan = launcher.up(restart="never" if no_restart else "always" if restart_only else "changed", setup=not restart_only, confirm=confirm)
        if plan is None:
            raise click.Abort
        address = launcher.head().address
        count = len(launcher.config.nodes)
    nodes = "1 node" if count == 1 else f"{count} nodes"
    click.echo(f"Cluster {launcher.config.name} is up{' already' if plan.empty else ''}: {nodes}, control store at {address}.")
    click.echo(f"\nA program on its head:  shoal exec {file} 'python program.py'")
    click.echo(f"A shell there:          shoal attach {file}\nTo end it:              shoal down {file}")


@click.command("down")
@cluster_file
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--workers-only", is_flag=True, help="Leave the head.")
@name_option
def down_command(file: str, yes: bool, workers_only: bool, cluster_name: str | None) -> None:
    """End the cluster of FILE. Nothing of it is left on the machines but what its setup commands and file mounts put there."""
    with opened(file, cluster_name) as launcher:
        what = "the workers of the cluster" if workers_only else "the cluster"
        if not yes and not _ask(f"End {what} {launcher.config.name}, with everything that runs on it?"):
            raise click.Abort
        launcher.down(workers_only=workers_only)
    click.echo(f"Nothing of {what} {launcher.config.name} runs any more.")


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        tell("nobody can be asked here: give --yes")
        return False
    return click.confirm(question)
