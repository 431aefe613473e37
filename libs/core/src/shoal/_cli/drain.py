"""shoal drain: takes a node out of its cluster without losing what runs there."""

from __future__ import annotations

import time
from typing import Any

import click

from .cluster import Head, address_options, find_head

DEFAULT_DEADLINE_S = 600.0
_POLL_S = 0.2
_MOST_NODES = 10_000
# After its deadline a node ends its workers, and the control store waits so long before it declares it dead.
_END_MARGIN_S = 30.0


@click.command("drain")
@click.argument("node")
@click.option("--reason", default="", help="For people: shown in `shoal status` and in errors.")
@click.option(
    "--deadline", "deadline_s", type=click.FloatRange(0), default=DEFAULT_DEADLINE_S, show_default=True,
    help="Seconds after which the node ends, whatever still runs there. 0: it waits as long as it takes.",
)
@click.option("--wait", is_flag=True, help="Return once the node has ended.")
@address_options
def drain_command(
    node: str, reason: str, deadline_s: float, wait: bool, address: str | None, token_file: str | None, temp_dir: str | None
) -> None:
    """Let NODE (the beginning of its id, or its name) finish what it runs, take nothing new, and end.

    Restartable actors start elsewhere. The node waits until the objects that lie there alone are freed; at the deadline they go with it.
    """
    head = find_head(address, token_file, temp_dir)
    told = head.post(f"/api/v0/nodes/{node}/drain", {"reason": reason, "deadline_s": deadline_s})
    node_id = told["node_id"]
    within = f"within {deadline_s:g} s" if deadline_s else "once nothing runs there"
    click.echo(f"Node {node_id[:12]} drains; it ends {within}.")
    if wait:
        click.echo(f"Node {node_id[:12]} has ended: {_wait(head, node_id, deadline_s)}.")


def _wait(head: Head, node_id: str, deadline_s: float) -> str:
    until = time.monotonic() + deadline_s + _END_MARGIN_S if deadline_s else float("inf")
    answered = time.monotonic()
    while time.monotonic() < until:
        try:
            rows: list[dict[str, Any]] = head.get("/api/v0/nodes", limit=_MOST_NODES)["result"]
        except click.ClickException:
            # When a head drains there is none for a moment, until the one that stands by leads.
            if time.monotonic() - answered > _END_MARGIN_S:
                raise
        else:
            answered = time.monotonic()
            found = next((row for row in rows if row["node_id"] == node_id), None)
            if found is None:  # dead nodes are not on record, and another head leads since
                return "another head leads, and has it no more"
            if found["state"] == "DEAD":
                return str(found["state_message"])
        time.sleep(_POLL_S)
    raise click.ClickException(f"node {node_id[:12]} has not ended {_END_MARGIN_S:g} s after its deadline")
