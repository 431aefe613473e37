"""shoal get-head-ip, shoal get-worker-ips: the machines of a file's cluster."""

from __future__ import annotations

import click

from .launching import cluster_file, name_option, opened


@click.command("get-head-ip")
@cluster_file
@name_option
def get_head_ip_command(file: str, cluster_name: str | None) -> None:
    """Print the head's address."""
    with opened(file, cluster_name) as launcher:
        click.echo(launcher.config.head.host)


@click.command("get-worker-ips")
@cluster_file
@name_option
def get_worker_ips_command(file: str, cluster_name: str | None) -> None:
    """Print the workers' addresses, one a line."""
    with opened(file, cluster_name) as launcher:
        for node in launcher.config.workers:
            click.echo(node.host)
