"""shoal version"""

from __future__ import annotations

import platform

import click
from shoal_base import WIRE_OLDEST, WIRE_VERSION

from shoal import __version__


@click.command("version")
def version_command() -> None:
    """Print the version, that of the wire, and Python's."""
    click.echo(f"shoal {__version__}, wire {WIRE_OLDEST} to {WIRE_VERSION}, Python {platform.python_version()}")
