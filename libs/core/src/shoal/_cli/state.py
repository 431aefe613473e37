"""shoal list, get, summary: the state API in a terminal."""

from __future__ import annotations

import json

import click

from .cluster import address_options, find_head
from .table import size, table, tree

_COLUMNS = {
    "nodes": ["node_id", "node_ip", "is_head_node", "state", "node_name", "resources_total", "labels"],
    "actors": ["actor_id", "class_name", "state", "job_id", "name", "node_id", "pid", "ray_namespace"],
    "tasks": ["task_id", "name", "state", "job_id", "node_id", "worker_pid", "error_message"],
    "jobs": ["job_id", "status", "type", "entrypoint", "start_time", "end_time"],
    "workers": ["worker_id", "worker_type", "state", "node_id", "pid", "job_id", "task_name"],
    "placement_groups": ["placement_group_id", "name", "state", "strategy", "creator_job_id", "bundles"],
    "objects": ["object_id", "node_id", "object_size", "state", "pins"],
}
_RESOURCE = click.Choice([name.replace("_", "-") for name in _COLUMNS], case_sensitive=False)


@click.command("list")
@click.argument("resource", type=_RESOURCE)
@click.option("--format", "shape", type=click.Choice(["default", "json", "yaml", "table"]), default="default")
@click.option("-f", "--filter", "filters", multiple=True, metavar="FIELD=VALUE", help="Also FIELD!=VALUE; several must all hold.")
@click.option("--limit", type=int, default=100, show_default=True)
@click.option("--detail", is_flag=True, help="Every field.")
@click.option("--timeout", type=float, default=30.0, show_default=True)
@address_options
def list_command(
    resource: str, shape: str, filters: tuple[str, ...], limit: int, detail: bool, timeout: float, address: str | None, token_file: str | None,
    temp_dir: str | None,
) -> None:  # fmt: skip
    """List nodes, actors, tasks, jobs, workers, placement-groups or objects."""
    head = find_head(address, token_file, temp_dir)
    answer = head.get(f"/api/v0/{resource}", timeout, limit=limit, filter=list(filters))
    rows = answer["result"]
    if shape == "json":
        click.echo(json.dumps(rows, indent=1))
    elif shape == "yaml" or detail:
        click.echo("\n---\n".join(tree(row) for row in rows))
    elif rows:
        click.echo(table(rows, _COLUMNS[resource.replace("-", "_")]))
    if shape in ("default", "table"):
        shown = f"{len(rows)} of {answer['num_filtered']} shown; --limit shows more" if answer["truncated"] else f"{len(rows)} {resource}"
        click.echo(f"({shown})", err=True)
    warn(answer["warnings"])


@click.command("get")
@click.argument("resource", type=_RESOURCE)
@click.argument("id")
@click.option("--timeout", type=float, default=30.0, show_default=True)
@address_options
def get_command(resource: str, id: str, timeout: float, address: str | None, token_file: str | None, temp_dir: str | None) -> None:
    """Show one record; its id may be shortened."""
    head = find_head(address, token_file, temp_dir)
    click.echo(tree(head.get(f"/api/v0/{resource}/{id}", timeout)["result"]))


@click.command("summary")
@click.argument("resource", type=click.Choice(["tasks", "actors", "objects"]))
@click.option("--timeout", type=float, default=30.0, show_default=True)
@address_options
def summary_command(resource: str, timeout: float, address: str | None, token_file: str | None, temp_dir: str | None) -> None:
    """Count tasks, actors or objects by name and state."""
    answer = find_head(address, token_file, temp_dir).get(f"/api/v0/summary/{resource}", timeout)
    rows = [{"name": name, "states": ", ".join(f"{state} {count}" for state, count in states.items())} for name, states in answer["summary"].items()]
    if rows:
        click.echo(table(rows, ["name", "states"]))
    click.echo(f"({answer['total']} {resource}" + (f", {size(answer['total_size_bytes'])}" if "total_size_bytes" in answer else "") + ")", err=True)
    warn(answer["warnings"])


def warn(warnings: list[str]) -> None:
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)
