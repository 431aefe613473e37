"""shoal get-auth-token: what drivers elsewhere and HTTP clients prove themselves with."""

from __future__ import annotations

from pathlib import Path

import click
from shoal_base.auth import make_secret_file, read_secret

from .cluster import NoCluster, running_nodes


@click.command("get-auth-token")
@click.option("--generate", type=click.Path(dir_okay=False), default=None, metavar="FILE", help="Make a new token file instead, for `start --token-file`.")
@click.option("--temp-dir", default=None, help="Where nodes' files lie; default: $SHOAL_TMPDIR or /tmp/shoal-UID.")
def get_auth_token_command(generate: str | None, temp_dir: str | None) -> None:
    """Print the user token of this host's cluster."""
    if generate:
        make_secret_file(generate)
        click.echo(f"{generate} holds the token.")
        return
    nodes = running_nodes(temp_dir)
    if not nodes:
        raise NoCluster("no cluster of this user runs on this host: run `shoal start --head`, or make a token with --generate FILE")
    click.echo(read_secret(Path(nodes[0].secrets_dir) / "user.token").decode())
