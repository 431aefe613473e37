"""shoal timeline: what ran when, as a trace for Chrome or Perfetto."""

from __future__ import annotations

import json

import click

from .cluster import address_options, find_head


@click.command("timeline")
@click.option("--filename", default="shoal-timeline.json", show_default=True, type=click.Path(dir_okay=False, writable=True), help="Where to write it.")
@click.option("--timeout", type=float, default=60.0, show_default=True)
@address_options
def timeline_command(filename: str, timeout: float, address: str | None, token_file: str | None, temp_dir: str | None) -> None:
    """Write the tasks and calls that ended lately as a trace: open it at chrome://tracing or ui.perfetto.dev."""
    answer = find_head(address, token_file, temp_dir).get("/api/v0/timeline", timeout)
    with open(filename, "w") as file:
        json.dump(answer["result"], file)
    for warning in answer["warnings"]:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(f"{len(answer['result'])} tasks written to {filename}")
