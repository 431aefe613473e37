"""What the commands of cluster files have in common: the file, the name, the launcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from shoal._launcher.launcher import Launcher

Command = Callable[..., Any]


def cluster_file(command: Command) -> Command:
    return click.argument("file", type=click.Path(exists=True, dir_okay=False))(command)


def name_option(command: Command) -> Command:
    return click.option("-n", "--cluster-name", default=None, help="Instead of the file's cluster_name.")(command)


def tell(line: str) -> None:
    """Progress, beside the output."""
    click.echo(line, err=True)


@contextmanager
def opened(file: str, cluster_name: str | None) -> Iterator[Launcher]:
    """The launcher of the file's cluster."""
    from shoal._launcher.config import read_config
    from shoal._launcher.launcher import Launcher

    try:
        config = read_config(file, cluster_name)
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    with Launcher(config, tell) as launcher:
        yield launcher
