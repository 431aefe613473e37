"""shoal logs: the files of every node."""

from __future__ import annotations

import sys
import threading
from typing import Any

import click

from .cluster import Head, address_options, find_head
from .table import size, table

# Limit: files followed at a time, each with a thread.
MAX_FOLLOWED = 64


@click.command("logs")
@click.argument("glob", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as the files grow.")
@click.option("--tail", type=int, default=1000, show_default=True, help="Lines from the end; -1: all.")
@click.option("--node-id", "-id", default="", help="Only of the node whose id begins so.")
@click.option("--timeout", type=float, default=30.0, show_default=True)
@address_options
def logs_command(
    glob: str | None, follow: bool, tail: int, node_id: str, timeout: float, address: str | None, token_file: str | None, temp_dir: str | None
) -> None:
    """List log files, or print those whose names match GLOB (as `raylet*` or `worker-*.out`)."""
    head = find_head(address, token_file, temp_dir)
    answer = head.get("/api/v0/logs", timeout, glob=glob or "*", node_id=node_id)
    files = answer["files"]
    for warning in answer["warnings"]:
        click.echo(f"Warning: {warning}", err=True)
    if not files:
        raise click.ClickException(f"no log file matches {glob!r}" if glob else "there are no log files")
    if glob is None:
        rows = [{"node": file["node_id"][:12], "name": file["name"], "size": size(file["size_bytes"])} for file in files]
        click.echo(table(rows, ["node", "name", "size"]))
        return
    several = len(files) > 1
    if follow:
        _follow(head, files, tail)
        return
    for file in files:
        if several:
            click.echo(f"==> {file['node_id'][:12]} {file['name']} <==")
        _print(head, file, tail, follow=False, timeout_s=timeout, prefix="")


def _print(head: Head, file: dict[str, Any], tail: int, *, follow: bool, timeout_s: float | None, prefix: str) -> None:
    with head.stream("/api/v0/logs/file", timeout_s, name=file["name"], node_id=file["node_id"], tail=tail, follow=int(follow)) as response:
        if prefix:
            while line := response.readline():
                sys.stdout.write(f"{prefix}{line.decode('utf-8', 'replace')}")
                sys.stdout.flush()
            return
        while data := response.read1(1 << 16):
            sys.stdout.write(data.decode("utf-8", "replace"))
            sys.stdout.flush()


def _follow(head: Head, files: list[dict[str, Any]], tail: int) -> None:
    if len(files) > MAX_FOLLOWED:
        raise click.ClickException(f"{len(files)} files match, at most {MAX_FOLLOWED} can be followed: give a narrower GLOB or --node-id")
    threads = []
    for file in files:
        prefix = f"{file['node_id'][:6]}/{file['name']}: " if len(files) > 1 else ""
        options = {"follow": True, "timeout_s": None, "prefix": prefix}
        thread = threading.Thread(target=_print, args=(head, file, tail), kwargs=options, name=f"logs {file['name']}", daemon=True)
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
