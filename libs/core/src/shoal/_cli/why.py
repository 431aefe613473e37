"""shoal why: the reason that something waits."""

from __future__ import annotations

from urllib.parse import quote

import click

from .cluster import address_options, find_head


@click.command("why")
@click.argument("what")
@address_options
def why_command(what: str, address: str | None, token_file: str | None, temp_dir: str | None) -> None:
    """Tell why a task, an actor or a placement group waits.

    WHAT is a name, or an id or its beginning. One task that waits is found by its whole id, or by that of its result, as GetTimeoutError names it.
    """
    answer = find_head(address, token_file, temp_dir).get(f"/api/v0/why/{quote(what, safe='')}")
    for line in answer["lines"]:
        click.echo(line)
    for warning in answer["warnings"]:
        click.echo(f"Warning: {warning}", err=True)
    if not answer["found"]:
        raise SystemExit(1)
