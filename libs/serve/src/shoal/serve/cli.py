"""`shoal serve`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click
import shoal
from shoal import serve

ADDRESS = click.option("-a", "--address", help="HOST:PORT of a running cluster; without it SHOAL_ADDRESS, or this user's running one")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Serve models over HTTP."""


@main.command()
@click.argument("config_or_import_path")
@click.argument("arguments", nargs=-1)
@click.option("-d", "--app-dir", default=".", show_default=True, help="where modules are looked for")
@ADDRESS
@click.option("--blocking/--non-blocking", default=True, show_default=True, help="stay until Ctrl-C, then end the applications")
@click.option("--route-prefix", default="/", show_default=True, help="for an import path; with a file it stands there")
@click.option("--name", default="default", show_default=True, help="of the application; for an import path")
def run(config_or_import_path: str, arguments: Sequence[str], app_dir: str, address: str | None, blocking: bool, route_prefix: str, name: str) -> None:
    """Run an application: MODULE:APPLICATION, or a YAML file. ARGUMENTS are KEY=VALUE for a builder function.

    On the running cluster; where there is none, one is started that ends with this command.
    """
    from . import api, declarative, schema

    sys.path.insert(0, os.path.abspath(app_dir))
    is_file = config_or_import_path.endswith((".yaml", ".yml"))
    if is_file and arguments:
        raise click.UsageError("a YAML file brings its own arguments (applications[].args)")
    config = schema.read(config_or_import_path) if is_file else None
    app = None if is_file else schema.import_application(config_or_import_path, _pairs(arguments))
    # A service manager's way to say Ctrl-C, also while the application is still being started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Where no cluster runs, one is started that `shoal serve status` and the like find, and that ends with this command.
    shoal.init(address=address, _system_config={"supervisor": {"private": False}})
    try:
        if config is not None:
            declarative.apply(config)
        else:
            assert app is not None
            serve.run(app, name=name, route_prefix=route_prefix)
        click.echo(f"Running at {serve.http_address() or 'no HTTP address'}." + (" Ctrl-C ends it." if blocking else ""))
        if blocking:
            api._block()
    except KeyboardInterrupt:
        serve.shutdown()
    finally:
        shoal.shutdown()


@main.command()
@click.argument("config_path", type=click.Path(exists=True, dir_okay=False))
@click.option("-d", "--app-dir", default=".", show_default=True, help="where modules are looked for")
@ADDRESS
def deploy(config_path: str, app_dir: str, address: str | None) -> None:
    """Bring a running cluster to what a YAML file describes. What serves goes on until the new version does."""
    from . import declarative, schema

    config = schema.read(config_path)
    sys.path.insert(0, os.path.abspath(app_dir))
    with _cluster(address):
        names = declarative.apply(config)
    click.echo(f"Deployed: {', '.join(names)}.")


@main.command()
@ADDRESS
@click.option("--http-host", default="127.0.0.1", show_default=True)
@click.option("--http-port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--proxy-location", default="EveryNode", show_default=True, type=click.Choice(["Disabled", "HeadOnly", "EveryNode"]))
def start(address: str | None, http_host: str, http_port: int, proxy_location: str) -> None:
    """Start Serve on a running cluster, without an application."""
    with _cluster(address):
        serve.start(proxy_location, {"host": http_host, "port": http_port})
        click.echo(f"Serve runs, at {serve.http_address() or 'no HTTP address'}.")


@main.command()
@ADDRESS
@click.option("-n", "--name", help="of one application")
def status(address: str | None, name: str | None) -> None:
    """What runs, and what is wrong with it, as YAML."""
    with _cluster(address):
        found = serve.status()
    data = _plain(asdict(found))
    if name is not None:
        if name not in data["applications"]:
            raise click.ClickException(f"there is no application {name!r}; there are {', '.join(data['applications']) or 'none'}")
        data = data["applications"][name]
    click.echo(_yaml(data), nl=False)


@main.command()
@ADDRESS
@click.option("-n", "--name", help="of one application")
def config(address: str | None, name: str | None) -> None:
    """The YAML that was deployed last."""
    from . import declarative

    with _cluster(address):
        data: Any = declarative.deployed_config()
    if name is not None:
        data = next((app for app in data.get("applications", []) if app.get("name", "default") == name), None)
    if not data:
        raise click.ClickException("nothing was deployed from a file" + (f" as application {name!r}" if name else ""))
    click.echo(_yaml(data), nl=False)


@main.command()
@ADDRESS
@click.option("-y", "--yes", is_flag=True, help="do not ask")
def shutdown(address: str | None, yes: bool) -> None:
    """End all applications, and Serve on this cluster."""
    if not yes:
        click.confirm("This ends all applications of the cluster. Go on?", abort=True)
    with _cluster(address):
        serve.shutdown()
    click.echo("Serve has ended.")


def _cluster(address: str | None) -> Any:
    return shoal.init(address=address or os.environ.get("SHOAL_ADDRESS") or "auto")


def _pairs(arguments: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for one in arguments:
        key, equals, value = one.partition("=")
        if not equals or not key:
            raise click.UsageError(f"arguments of a builder are KEY=VALUE, got {one!r}")
        pairs[key] = value
    return pairs


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return str(value.value) if hasattr(value, "value") else value


def _yaml(data: Any) -> str:
    import yaml

    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
