"""shoal local-nodes: this user's nodes on this host, for programs. `shoal up` asks it on every machine."""

from __future__ import annotations

import json
from pathlib import Path

import click
from msgspec.structs import asdict

from shoal._supervisor.directories import living_nodes

from .cluster import running_nodes


@click.command("local-nodes", hidden=True)
@click.option("--temp-dir", default=None, help="Where nodes' files lie; default: $SHOAL_TMPDIR or /tmp/shoal-UID.")
def local_nodes_command(temp_dir: str | None) -> None:
    """Print this user's nodes of `shoal start` on this host, as JSON in one line."""
    # A folder that is named is only looked into, not made.
    nodes = [node for node in living_nodes(Path(temp_dir)) if not node.private] if temp_dir else running_nodes(None)
    # Without an address a node still starts.
    click.echo(json.dumps([asdict(node) for node in nodes if node.node_address]))
