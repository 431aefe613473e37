"""The `shoal` command. Sub-commands live in files of their own and are imported when they are called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from .errors import as_click

GROUP = "shoal.commands"
_COMMANDS = {
    "start": "start", "stop": "stop", "status": "status", "list": "state", "get": "state", "summary": "state", "memory": "memory", "logs": "logs",
    "get-auth-token": "token", "version": "version", "local-nodes": "local_nodes", "up": "up", "down": "up", "exec": "exec", "attach": "exec",
    "get-head-ip": "addresses", "get-worker-ips": "addresses", "health-check": "health", "why": "why",
    "timeline": "timeline", "drain": "drain",
}  # fmt: skip


class Commands(click.Group):
    """Built-in commands, and those of libraries (entry points of the group `shoal.commands`)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_COMMANDS, *(point.name for point in entry_points(group=GROUP))})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _COMMANDS:
            command: click.Command = getattr(import_module(f".{_COMMANDS[name]}", __name__), name.replace("-", "_") + "_command")
            return command
        for point in entry_points(group=GROUP):
            if point.name == name:
                return _load(point)
        return None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("SHOAL_TRACEBACK") == "1":
                raise
            raise as_click(error) from error


def _load(point: EntryPoint) -> click.Command:
    """A library's command; when it cannot be imported, one that says so: `shoal --help` must not fail with it."""
    try:
        loaded: click.Command = point.load()
        return loaded
    except Exception as error:
        why = f"{point.value} of {point.dist.name if point.dist else 'some package'} cannot be loaded: {type(error).__name__}: {error}"

        def refuse(**_: Any) -> None:
            raise click.ClickException(why)

        return click.Command(point.name, callback=refuse, short_help="(cannot be loaded)", add_help_option=False, context_settings={
            "ignore_unknown_options": True, "allow_extra_args": True,
        })  # fmt: skip


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Shoal: Python on one machine or many."""


def main() -> None:
    """The console script. An error is one line; SHOAL_TRACEBACK=1 shows where it came from."""
    try:
        cli(prog_name="shoal")
    except BrokenPipeError:
        # `shoal logs | head`: nobody reads on. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
