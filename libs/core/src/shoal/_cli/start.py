"""shoal start: a head, or a node that joins one."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from pathlib import Path
from typing import Any

import click

from shoal import _spilling
from shoal._supervisor.config import DEFAULT_HTTP_PORT, DEFAULT_PORT, NodeConfig
from shoal._supervisor.directories import base_directory, living_nodes
from shoal._supervisor.launch import Launched, LaunchFailed, launch
from shoal._supervisor.ports import someone_listens, split_address
from shoal._supervisor.resources import node_labels, node_resources, store_bytes
from shoal._supervisor.spawn import wait_exit

# `shoal stop` gives workers this long to end by themselves.
GRACE_S = 5.0
# What ends `--block`.
_ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_SIGNALS_BYTES = 4096
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _json_object(text: str | None, option: str) -> dict[str, Any]:
    """JSON, or key=value pairs with commas."""
    if not text:
        return {}
    if not text.lstrip().startswith("{"):
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        if all(equals and key.strip() for key, equals, _ in pairs):
            return {key.strip(): value.strip() for key, _, value in pairs}
        raise click.BadParameter(f"{text!r}: JSON or KEY=VALUE[,KEY=VALUE] is wanted", param_hint=option)
    try:
        value: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no JSON: {error}", param_hint=option) from error
    return value


def _resources(text: str | None) -> dict[str, float]:
    given = _json_object(text, "--resources")
    try:
        return {name: float(amount) for name, amount in given.items()}
    except (TypeError, ValueError) as error:
        raise click.BadParameter(f"{text!r}: amounts are numbers", param_hint="--resources") from error


def _secrets_of(address: str, temp_dir: str | None) -> str:
    """Where this user's node of that cluster on this host keeps them; empty when there is none."""
    wanted = {split_address(part) for part in address.split(",")}
    for node in living_nodes(base_directory(temp_dir)):
        if wanted & {split_address(part) for part in node.gcs_address.split(",")}:
            return node.secrets_dir
    return ""


@click.command("start")
@click.option("--head", is_flag=True, help="Start a new cluster with its control store here.")
@click.option("--address", default=None, metavar="HOST:PORT[,HOST:PORT]", help="Join the cluster whose control store is there.")
@click.option("--port", type=int, default=None, help=f"The control store's port (head only; default {DEFAULT_PORT}; 0: any free one).")
@click.option("--host", "--node-ip-address", default="127.0.0.1", show_default=True, help="This node's address, where it also listens.")
@click.option("--node-port", "--node-manager-port", type=int, default=0, help="The node's own port (0: any free one).")
@click.option("--num-cpus", type=float, default=None, help="Default: what affinity and cgroups allow.")
@click.option("--num-gpus", type=float, default=None, help="Default: the NVIDIA devices found.")
@click.option("--memory", type=int, default=None, help="Bytes for tasks and actors. Default: what the object store leaves.")
@click.option("--object-store-memory", type=int, default=None, help="Bytes of the object store. Default: 30 % of the memory.")
@click.option(
    "--spill-dir", "--object-spilling-directory", "spill_dirs", multiple=True, metavar="DIR|URI",
    help="Where cold objects go when memory lacks; may be given several times. A URI (s3://bucket/folder) gets what no directory takes. "
    "Default: the node's own directory.",
)
@click.option("--preload", default="", metavar="MODULE[,MODULE]", help="Modules that are imported once, before workers are forked from that process.")
@click.option("--resources", default=None, help='Custom resources: JSON \'{"name": 2}\' or name=2.')
@click.option("--labels", default=None, help="Labels: JSON or KEY=VALUE,KEY=VALUE.")
@click.option("--node-name", default="", help="A name for people.")
@click.option("--storage", default="", help="Where records are kept: sqlite:PATH, redis://…, memory. Default: SQLite that goes with the head.")
@click.option("--standby", is_flag=True, help="With --head: stand by for the head of the same --storage redis://…, and take over when it fails.")
@click.option("--secrets-dir", type=click.Path(file_okay=False), default=None, help="Folder with node.secret and user.token; a head makes what is missing.")
@click.option("--token-file", type=click.Path(dir_okay=False), default=None, help="One secret for all: a head makes the file, others join with a copy.")
@click.option("--http-port", "--dashboard-port", type=int, default=None, help=f"The head's HTTP port (default {DEFAULT_HTTP_PORT}; 0: any free one).")
@click.option("--http-host", "--dashboard-host", default="127.0.0.1", show_default=True)
@click.option("--include-dashboard", type=bool, default=True, show_default=True, help="Whether the head serves HTTP.")
@click.option("--temp-dir", default=None, help="Where this user's nodes keep their files; default: $SHOAL_TMPDIR or /tmp/shoal-UID.")
@click.option("--log-level", default="INFO", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False))
@click.option("--log-encoding", default="TEXT", type=click.Choice(["TEXT", "JSON"], case_sensitive=False))
@click.option("--block", is_flag=True, help="Stay in the foreground; the node ends with this command.")
@click.option("--system-config", default=None, hidden=True, help="JSON: settings of services.")
def start_command(**given: Any) -> None:
    """Start a head (--head), or a node that joins one (--address)."""
    config = make_config(given)
    try:
        launched = launch(lambda: config, own=given["block"])
    except LaunchFailed as error:
        raise click.ClickException(str(error)) from error
    # Before anybody is told that the node runs, and may signal us.
    signals = _catch_signals() if given["block"] else -1
    _tell(config, launched, given)
    if given["block"]:
        _block(launched, signals)


def make_config(given: dict[str, Any]) -> NodeConfig:
    """Raises ClickException or ValueError naming the option that is wrong."""
    head, address = given["head"], given["address"]
    if head == bool(address):
        raise click.UsageError("give either --head (a new cluster) or --address HOST:PORT (join one)")
    for name, option in (("port", "--port"), ("http_port", "--http-port"), ("storage", "--storage")):
        if address and given[name]:
            raise click.UsageError(f"{option} is for the head")
    _check_standby(given)
    if given["secrets_dir"] and given["token_file"]:
        raise click.UsageError("give --secrets-dir or --token-file, not both")
    base = base_directory(given["temp_dir"])
    host = given["host"]
    objects = store_bytes(given["object_store_memory"])
    config = NodeConfig(
        base=str(base), head=head, standby=given["standby"], private=False, host=host, node_port=given["node_port"],
        http=given["include_dashboard"], http_host=given["http_host"],
        resources=node_resources(
            num_cpus=given["num_cpus"], num_gpus=given["num_gpus"], memory=given["memory"], object_store_bytes=objects,
            custom=_resources(given["resources"]), host=host, head=head,
        ),
        labels=node_labels({key: str(value) for key, value in _json_object(given["labels"], "--labels").items()}, "", given["node_name"]),
        node_name=given["node_name"], object_store_bytes=objects, storage=given["storage"], log_level=given["log_level"].upper(),
        log_encoding=given["log_encoding"].upper(), grace_s=GRACE_S, settings=_settings(given),
        secrets_dir=os.path.abspath(given["secrets_dir"]) if given["secrets_dir"] else "",
        token_file=os.path.abspath(given["token_file"]) if given["token_file"] else "",
    )  # fmt: skip
    if head:
        config.port = DEFAULT_PORT if given["port"] is None else given["port"]
        config.http_port = DEFAULT_HTTP_PORT if given["http_port"] is None else given["http_port"]
    else:
        _join(config, address, given["temp_dir"])
    return config


def _check_standby(given: dict[str, Any]) -> None:
    if not given["standby"]:
        return
    if not given["head"]:
        raise click.UsageError("--standby is for a second head: give --head, too")
    if given["storage"].partition(":")[0] not in ("redis", "rediss", "unix"):
        named = given["storage"] or "SQLite"
        raise click.UsageError(f"--standby needs the --storage redis://… of the head that it stands by for; {named} is one machine's alone")
    if not given["secrets_dir"] and not given["token_file"]:
        raise click.UsageError("--standby takes the cluster's secrets: give the --secrets-dir or a copy of the --token-file that the head was started with")


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    settings = _spilling.with_places(_json_object(given["system_config"], "--system-config"), given["spill_dirs"])
    modules = [name.strip() for name in given["preload"].split(",") if name.strip()]
    if modules:
        settings["raylet"] = {**settings.get("raylet", {}), "preload": modules}
    return settings


def _join(config: NodeConfig, address: str, temp_dir: str | None) -> None:
    config.gcs_addresses = [part.strip() for part in address.split(",") if part.strip()]
    try:
        hosts = [split_address(part)[0] for part in config.gcs_addresses]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--address") from error
    if config.host in _LOOPBACK and not any(host in _LOOPBACK for host in hosts):
        raise click.UsageError(f"--host: {config.host} cannot be reached from {hosts[0]}; give this machine's own address with --host")
    silent = {part: why for part in config.gcs_addresses if (why := someone_listens(part))}
    if len(silent) == len(config.gcs_addresses):
        told = "; ".join(f"{part}: {why}" for part, why in silent.items())
        raise click.ClickException(f"no control store answers: {told}. Is the head running, and is this its address?")
    if not config.secrets_dir and not config.token_file:
        config.secrets_dir = _secrets_of(address, temp_dir)
        if not config.secrets_dir:
            raise click.ClickException(
                f"joining {address} takes the cluster's secrets: copy node.secret and user.token from the head and give --secrets-dir, "
                "or the --token-file that the head was started with"
            )


def _tell(config: NodeConfig, launched: Launched, given: dict[str, Any]) -> None:
    told = launched.started
    kind = "Standby head" if config.standby else "Head" if config.head else "Node"
    click.echo(f"{kind} {told.node_id[:12]} runs at {told.node_address}; its files are in {told.node_dir}.")
    if not config.head:
        click.echo(f"It has joined the cluster at {told.gcs_address}.")
        return
    click.echo(f"Control store: {told.gcs_address}" + (f"   HTTP: http://{told.http_address}" if told.http_address else ""))
    secret = f" --token-file {given['token_file']}" if given["token_file"] else f" --secrets-dir {given['secrets_dir']}" if given["secrets_dir"] else ""
    click.echo(f"\nTo add a node:        shoal start --address {told.gcs_address}{secret}")
    if config.host in _LOOPBACK:
        click.echo("                      (this head listens on this machine only; give --host ADDRESS for others)")
    click.echo('To use it in Python:  import shoal; shoal.init()' + ("" if not given["temp_dir"] else f"   with SHOAL_TMPDIR={Path(config.base)}"))
    click.echo("To end it:            shoal stop")


def _catch_signals() -> int:
    """A descriptor that becomes readable with SIGTERM, SIGINT or SIGHUP."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing)
    # As the first process of a container this one also inherits orphans, of `docker exec` and its like.
    first = [signal.SIGCHLD] if os.getpid() == 1 else []
    for number in (*_ENDING, *first):
        signal.signal(number, lambda *_: None)
    return reading


def _block(launched: Launched, signals: int) -> None:
    """Until the node ends, or a signal says that it should."""
    ended = os.pidfd_open(launched.process.pid)
    while ended not in select.select([signals, ended], [], [])[0]:
        if _ENDING & set(os.read(signals, _SIGNALS_BYTES)):
            break
        _reap_orphans(launched.process.pid)
    launched.stop()
    wait_exit(launched.process, GRACE_S)
    if launched.process.returncode:
        raise click.ClickException(f"the node ended by itself with code {launched.process.returncode}; its files are gone with it")


def _reap_orphans(supervisor: int) -> None:
    """Takes the status of every child that has ended, but the supervisor's, which is asked for later."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None and ended.si_pid != supervisor:
            os.waitpid(ended.si_pid, os.WNOHANG)
