"""shoal health-check: whether this host's node serves. For containers and service managers."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import click

from shoal._supervisor.directories import NodeFile
from shoal._supervisor.ports import someone_listens, split_address

from .cluster import running_nodes


@click.command("health-check")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="Seconds for each answer.")
@click.option("--temp-dir", default=None, help="Where nodes' files lie; default: $SHOAL_TMPDIR or /tmp/shoal-UID.")
def health_check_command(timeout_s: float, temp_dir: str | None) -> None:
    """Exit with 0 when this user's nodes on this host answer, and, on a head, its control store does. Else say what does not, and exit with 1."""
    nodes = running_nodes(temp_dir)
    if not nodes:
        raise click.ClickException("no node of this user runs on this host")
    if silent := [told for node in nodes for told in _silent(node, timeout_s)]:
        raise click.ClickException("; ".join(silent))
    click.echo("healthy")


def _silent(node: NodeFile, timeout_s: float) -> Iterator[str]:
    if why := someone_listens(node.node_address, timeout_s):
        yield f"node {node.node_id[:12]} at {node.node_address} does not answer: {why}"
    if node.http_address and (why := _unhealthy(node.http_address, timeout_s)):
        yield why


def _unhealthy(address: str, timeout_s: float) -> str:
    connection = http.client.HTTPConnection(*split_address(address), timeout=timeout_s)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        text = response.read(1 << 16).decode("utf-8", "replace").strip()
        return "" if response.status == 200 else text or f"the head answered {response.status}"
    except (OSError, http.client.HTTPException) as error:
        return f"the head's HTTP at {address} does not answer: {error or type(error).__name__}"
    finally:
        connection.close()
