"""Which cluster a command speaks to: the options for it, and the head's errors as a command shows them."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from shoal import _head
from shoal._head import TIMEOUT_S, TOKEN_FILE_VARIABLE
from shoal._runtime import ADDRESS_VARIABLE
from shoal._supervisor.directories import NodeFile, base_directory, living_nodes

__all__ = ["ADDRESS_VARIABLE", "TIMEOUT_S", "TOKEN_FILE_VARIABLE", "Head", "NoCluster", "address_options", "find_head", "running_nodes"]

Command = Callable[..., Any]


class NoCluster(click.ClickException):
    """No running cluster was found, or it did not answer."""


def address_options(command: Command) -> Command:
    """--address, --token-file and --temp-dir for commands that ask the head."""
    command = click.option("--temp-dir", default=None, help="Where nodes' files lie; default: $SHOAL_TMPDIR or /tmp/shoal-UID.")(command)
    command = click.option(
        "--token-file", default=None, type=click.Path(exists=True, dir_okay=False), help="File with the user token, for a cluster on another host."
    )(command)
    return click.option(
        "--address", default=None,
        help="The head: its HTTP address HOST:PORT or http://…, or the control store's of a node on this host. Default: this host's cluster.",
    )(command)  # fmt: skip


@contextmanager
def _as_click() -> Iterator[None]:
    try:
        yield
    except _head.HeadUnreachable as error:
        raise NoCluster(str(error)) from error
    except _head.HeadError as error:
        raise click.ClickException(str(error)) from error


class Head(_head.Head):
    """The head, for a command: raises NoCluster, and ClickException with what the head says."""

    @contextmanager
    def stream(self, path: str, timeout_s: float | None, body: bytes | None = None, **query: Any) -> Iterator[http.client.HTTPResponse]:
        with _as_click(), super().stream(path, timeout_s, body, **query) as response:
            yield response


def running_nodes(temp_dir: str | None) -> list[NodeFile]:
    """This user's nodes on this host that `shoal start` started."""
    return [node for node in living_nodes(base_directory(temp_dir)) if not node.private]


def find_head(address: str | None, token_file: str | None, temp_dir: str | None) -> Head:
    """Raises NoCluster naming what was looked at."""
    with _as_click():
        found = _head.find_head(address, token_file, temp_dir)
    return Head(found.host, found.port, found.token)
