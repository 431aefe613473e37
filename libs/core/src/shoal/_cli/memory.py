"""shoal memory: who holds how much, and what fills the object stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .cluster import address_options, find_head
from .state import warn
from .table import size, table

_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_STORE = ["node", "address", "capacity", "sealed", "lent", "free", "resident", "on disk", "objects", "clients", "waiting"]


@click.command("memory")
@click.option("--stats-only", is_flag=True, help="Only nodes and stores, neither processes nor objects.")
@click.option("-n", "--num-entries", type=int, default=100, show_default=True, help="The largest processes and objects shown.")
@click.option("--units", type=click.Choice(list(_UNITS), case_sensitive=False), default=None, help="Default: what fits each amount.")
@click.option("--sort-by", type=click.Choice(["SIZE", "PID"], case_sensitive=False), default="SIZE", show_default=True, help="The order of processes.")
@address_options
def memory_command(
    stats_only: bool, num_entries: int, units: str | None, sort_by: str, address: str | None, token_file: str | None, temp_dir: str | None
) -> None:  # fmt: skip
    """Show what nodes and processes hold, and what fills the object stores."""
    head = find_head(address, token_file, temp_dir)
    answer = head.get("/api/v0/memory")
    show = shown_in(units)
    click.echo("Nodes")
    click.echo(table([_node(row, show) for row in answer["nodes"]], ["node", "address", "used", "total", "workers", "held by workers", "ended for memory"]))
    if not stats_only:
        order: Callable[[dict[str, Any]], int] = (lambda row: row["pid"]) if sort_by.upper() == "PID" else (lambda row: -row["memory_bytes"])
        click.echo("\nProcesses, without the shared arena")
        processes = sorted(answer["processes"], key=order)[:num_entries]
        click.echo(table([_process(row, show) for row in processes], ["pid", "node", "state", "runs", "held", "limit"]))
    click.echo("\nObject stores")
    click.echo(table([_store(row, show) for row in answer["stores"]], _STORE))
    if not stats_only:
        objects = sorted(head.get("/api/v0/objects", limit=10_000)["result"], key=lambda row: -row["object_size"])
        shown = [{**row, "object_size": show(row["object_size"])} for row in objects[:num_entries]]
        click.echo("\n" + (table(shown, ["object_id", "object_size", "state", "pins", "creator"]) if shown else "No object is stored."))
    warn(answer["warnings"])


def shown_in(units: str | None) -> Callable[[float], str]:
    """
    >>> shown_in("MB")(3 << 19), shown_in(None)(3 << 19)
    ('1.5 MB', '1.5 MiB')
    """
    if units is None:
        return size
    name = units.upper()
    return lambda count: f"{count / _UNITS[name]:g} {name}" if name == "B" else f"{count / _UNITS[name]:.1f} {name}"


def _node(row: dict[str, Any], show: Callable[[float], str]) -> dict[str, Any]:
    return {
        "node": row["node_id"][:12], "address": row["node_address"], "used": show(row["used_bytes"]), "total": show(row["total_bytes"]),
        "workers": row["workers"], "held by workers": show(row["workers_bytes"]), "ended for memory": row["kills"],
    }  # fmt: skip


def _process(row: dict[str, Any], show: Callable[[float], str]) -> dict[str, Any]:
    runs = row["task_name"] or (f"actor {row['actor_id'][:12]}" if row["actor_id"] else None)
    limit = row["memory_limit_bytes"]
    return {
        "pid": row["pid"], "node": row["node_id"][:12], "state": row["state"], "runs": runs, "held": show(row["memory_bytes"]),
        "limit": show(limit) if limit else None,
    }  # fmt: skip


def _store(row: dict[str, Any], show: Callable[[float], str]) -> dict[str, Any]:
    return {
        "node": row["node_id"][:12], "address": row["node_address"], "capacity": show(row["capacity_bytes"]), "sealed": show(row["sealed_bytes"]),
        "lent": show(row["lent_bytes"]), "free": show(row["free_bytes"]), "resident": show(row["resident_bytes"]), "objects": row["objects"],
        "on disk": show(row["on_disk_bytes"]), "clients": row["clients"], "waiting": row["waiting"],
    }  # fmt: skip
