"""shoal status: nodes, what they offer, what waits."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from .cluster import address_options, find_head, running_nodes
from .table import size, table

_BYTES = ("memory", "object_store_memory")


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Everything, for machines.")
@click.option("-v", "--verbose", is_flag=True, help="Also each node's resources, labels and files.")
@address_options
def status_command(as_json: bool, verbose: bool, address: str | None, token_file: str | None, temp_dir: str | None) -> None:
    """Show the cluster: nodes, resources, and what waits with its reason."""
    answer = find_head(address, token_file, temp_dir).get("/api/cluster_status")
    if as_json:
        click.echo(json.dumps(answer, indent=1))
        return
    alive = [node for node in answer["nodes"] if node["state"] == "ALIVE"]
    up = _span(time.time() - answer["start_time_ms"] / 1000)
    click.echo(f"Cluster {answer['cluster_id'][:12]}, Shoal {answer['version']}, up for {up}, storage {answer['storage']}")
    if answer["standby_heads"]:
        click.echo(f"Heads that stand by: {', '.join(answer['standby_heads'])}")
    click.echo(f"\nNodes: {len(alive)} alive, {len(answer['nodes']) - len(alive)} dead")
    columns = ["node", "address", "name", "state", "cpus", "queued", "pid"] + (["labels"] if verbose else [])
    click.echo(table([_node(node) for node in answer["nodes"]], columns))
    click.echo("\nResources: used of total")
    for name, total in answer["resources_total"].items():
        if not name.startswith("node:") or verbose:
            used = total - answer["resources_available"].get(name, 0.0)
            click.echo(f"  {name:<24} {_amount(name, used)} of {_amount(name, total)}")
    click.echo("\nWaiting: " + ("nothing" if not answer["pending"] else ""))
    for wish in answer["pending"]:
        never = " (no node can ever run it)" if wish["infeasible"] else ""
        click.echo(f"  {wish['count']} × {wish['name'] or 'a task'}, for {_span(wish['waited_s'])}: {wish['reason']}{never}")
    for warning in answer["warnings"]:
        click.echo(f"Warning: {warning}", err=True)
    if verbose:
        for node in running_nodes(temp_dir):
            click.echo(f"\nOn this host: node {node.node_id[:12]}, supervisor {node.supervisor_pid}\n  files {node.node_dir}\n  secrets {node.secrets_dir}")


def _node(node: dict[str, Any]) -> dict[str, Any]:
    state = "draining" if node["draining"] and node["state"] == "ALIVE" else node["state"].lower()
    if node["state"] == "DEAD" and node["state_message"]:
        state += f" ({node['state_message']})"
    free, total = node["resources_available"].get("CPU", 0.0), node["resources_total"].get("CPU", 0.0)
    return {
        "node": node["node_id"][:12] + (" head" if node["is_head_node"] else ""), "address": node["node_address"], "name": node["node_name"] or None,
        "state": state, "cpus": f"{total - free:g}/{total:g}", "queued": node["queued_leases"], "pid": node["pid"], "labels": node["labels"],
    }  # fmt: skip


def _amount(name: str, value: float) -> str:
    return size(value) if name in _BYTES else f"{value:g}"


def _span(seconds: float) -> str:
    """
    >>> _span(5), _span(7300)
    ('5 s', '2 h 1 min')
    """
    whole = int(max(0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min" if whole < 86400 else f"{whole // 86400} d {whole % 86400 // 3600} h"
