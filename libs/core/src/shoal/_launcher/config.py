"""A cluster file: what may stand in it, and what its nodes are started with."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

from shoal.util.yaml_config import Place, YamlConfig, load

# Limit: of the name, which is part of paths of Unix sockets.
MAX_NAME = 20
# Limit: nodes of one file.
MAX_NODES = 1000
SETUP_TIMEOUT_S = 1800.0
DEFAULT_SSH_PORT = 22
DEFAULT_TEMP_DIR = "/tmp/shoal-up-"  # and the user's name

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*")
# Never beginning with a dash: ssh would take it for an option.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.$-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_TOP = {
    "cluster_name", "provider", "auth", "temp_dir", "env", "file_mounts", "initialization_commands", "setup_commands", "head_setup_commands",
    "worker_setup_commands", "head_start_commands", "worker_start_commands", "head", "worker", "setup_timeout_s",
}  # fmt: skip
_AUTH = {"ssh_user", "ssh_private_key", "ssh_port", "ssh_proxy_command", "ssh_known_hosts"}
# Options of `shoal start` that may stand below `head` and `worker`.
_WORKER_OPTIONS: dict[str, type] = {
    "num_cpus": float, "num_gpus": float, "memory": int, "object_store_memory": int, "resources": dict, "labels": dict, "node_port": int, "log_level": str,
    "log_encoding": str,
}  # fmt: skip
_HEAD_OPTIONS: dict[str, type] = {**_WORKER_OPTIONS, "port": int, "http_port": int, "http_host": str, "storage": str}
# Keys of Ray's files that have no meaning here, with what to write instead.
_ELSEWHERE = {
    "max_workers": "the machines of provider.worker_ips are the workers, no more and no fewer",
    "min_workers": "the machines of provider.worker_ips are the workers, no more and no fewer",
    "available_node_types": "write options of the nodes below `head` and `worker`",
    "head_node_type": "write options of the head below `head`",
    "docker": "run the nodes in containers with deploy/compose.yaml or the Helm chart",
    "upscaling_speed": "clusters of a file have a fixed size",
    "idle_timeout_minutes": "clusters of a file have a fixed size",
    "rsync_exclude": "file_mounts are copied as they are",
    "rsync_filter": "file_mounts are copied as they are",
    "cluster_synced_files": "file_mounts go to every node",
}


@dataclass(frozen=True)
class Auth:
    """How machines are reached over SSH."""

    user: str
    private_key: str = ""  # empty: what ssh finds by itself
    port: int = DEFAULT_SSH_PORT
    proxy_command: str = ""
    known_hosts: str = ""  # empty: ssh's own file


@dataclass(frozen=True)
class Node:
    """One node that the file wants."""

    key: str  # its name in the record, and its folder on the machine
    host: str
    head: bool
    directory: str
    initialization: tuple[str, ...]
    setup: tuple[str, ...]
    start: tuple[str, ...]
    env: Mapping[str, str]  # values may name variables of the machine, as $NAME
    mounts: Mapping[str, str]  # path on the machine -> path here

    @cached_property
    def start_digest(self) -> str:
        """Changes when the node must be started anew."""
        return _digest([self.start, dict(self.env)])

    @cached_property
    def setup_digest(self) -> str:
        """Changes when the machine must be set up again; what is in mounted files counts apart."""
        return _digest([self.initialization, self.setup, dict(self.env)])


@dataclass(frozen=True)
class ClusterConfig:
    name: str
    provider: Literal["local", "ssh"]
    nodes: tuple[Node, ...]  # the head first
    auth: Auth
    temp_dir: str
    setup_timeout_s: float = SETUP_TIMEOUT_S
    path: str = ""
    workers: tuple[Node, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "workers", self.nodes[1:])

    @property
    def head(self) -> Node:
        return self.nodes[0]


def read_config(path: str | os.PathLike[str], name: str | None = None) -> ClusterConfig:
    """The file's cluster; `name` instead of its cluster_name. Raises YamlConfigError naming line and key, OSError, ImportError without PyYAML."""
    return make_config(load(path), name)


def make_config(file: YamlConfig, name: str | None = None) -> ClusterConfig:
    """Raises YamlConfigError naming line and key."""
    top = file.value((), dict)
    for key in top:
        if key in _ELSEWHERE:
            raise file.error((key,), f"is not for Shoal: {_ELSEWHERE[key]}")
    file.check_keys((), _TOP, {"cluster_name", "provider"})
    name = _name(file, name)
    kind = _provider(file)
    auth = _auth(file, kind)
    temp = file.value(("temp_dir",), str, DEFAULT_TEMP_DIR + auth.user)
    if not temp.startswith("/"):
        raise file.error(("temp_dir",), f"{temp!r}: an absolute path is wanted")
    timeout = file.value(("setup_timeout_s",), float, SETUP_TIMEOUT_S)
    if not 0 < timeout < 1e6:
        raise file.error(("setup_timeout_s",), f"{timeout:g} is no time to wait")
    directory = f"{temp.rstrip('/')}/{name}"
    hosts = _local_hosts(file) if kind == "local" else _ssh_hosts(file)
    nodes = tuple(_node(file, kind, key, host, directory) for key, host in hosts)
    return ClusterConfig(name, kind, nodes, auth, temp, timeout, file.name)


def _name(file: YamlConfig, given: str | None) -> str:
    name = given or file.value(("cluster_name",), str)
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise file.error(("cluster_name",), f"{name!r}: a letter, then letters, digits, dots, dashes or underscores are wanted, at most {MAX_NAME} in all")
    return name


def _provider(file: YamlConfig) -> Literal["local", "ssh"]:
    kind = file.value(("provider", "type"), str)
    if kind not in ("local", "ssh"):
        raise file.error(("provider", "type"), f"{kind!r}: local (nodes on this machine) or ssh (machines that exist already) is wanted")
    if kind == "local" and file.value(("provider",), dict).get("worker_ips") is not None:
        raise file.error(("provider", "worker_ips"), "nodes of type local run on this machine: give `workers: NUMBER`, or `type: ssh` for other machines")
    file.check_keys(("provider",), {"type", "workers"} if kind == "local" else {"type", "head_ip", "worker_ips"}, () if kind == "local" else ("head_ip",))
    return cast(Literal["local", "ssh"], kind)


def _auth(file: YamlConfig, kind: str) -> Auth:
    file.check_keys(("auth",), _AUTH)
    if kind == "local":
        if file.value(("auth",), dict, {}):
            raise file.error(("auth",), "is for `provider.type: ssh`; nodes of type local run as this user")
        return Auth(_own_name())
    user = file.value(("auth", "ssh_user"), str, _own_name())
    if not _USER.fullmatch(user):
        raise file.error(("auth", "ssh_user"), f"{user!r} is no name of a user")
    port = file.value(("auth", "ssh_port"), int, DEFAULT_SSH_PORT)
    if not 0 < port < 65536:
        raise file.error(("auth", "ssh_port"), f"{port} is no port")
    key = _own_path(file, ("auth", "ssh_private_key"))
    if key and not os.path.isfile(key):
        raise file.error(("auth", "ssh_private_key"), f"{key} is not there")
    return Auth(user, key, port, file.value(("auth", "ssh_proxy_command"), str, ""), _own_path(file, ("auth", "ssh_known_hosts")))


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in a container
        return str(os.getuid())


def _own_path(file: YamlConfig, place: Place) -> str:
    """A path on this machine: `~` is this user's home, relative ones begin at the file."""
    given = file.value(place, str, "")
    if not given:
        return ""
    return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(file.name)), os.path.expanduser(given)))


def _local_hosts(file: YamlConfig) -> list[tuple[str, str]]:
    workers = file.value(("provider", "workers"), int, 0)
    if not 0 <= workers < MAX_NODES:
        raise file.error(("provider", "workers"), f"{workers}: a number from 0 to {MAX_NODES - 1} is wanted")
    return [("head", "127.0.0.1"), *((f"worker-{index}", "127.0.0.1") for index in range(1, workers + 1))]


def _ssh_hosts(file: YamlConfig) -> list[tuple[str, str]]:
    places: list[Place] = [("provider", "head_ip")]
    count = len(file.value(("provider", "worker_ips"), list, []))
    if count >= MAX_NODES:
        raise file.error(("provider", "worker_ips"), f"{count} machines; at most {MAX_NODES - 1} are possible")
    places += [("provider", "worker_ips", index) for index in range(count)]
    hosts: dict[str, Place] = {}
    for place in places:
        host = file.value(place, str)
        if not _HOST.fullmatch(host):
            raise file.error(place, f"{host!r} is no name or address of a machine")
        if host in hosts:
            raise file.error(place, f"{host} stands twice, first in line {file.line(hosts[host])}; a machine runs one node")
        hosts[host] = place
    # By host, not by number: another machine taken out of the list changes nothing for this one.
    return [(("h-" if index == 0 else "w-") + hashlib.blake2b(host.encode(), digest_size=4).hexdigest(), host) for index, host in enumerate(hosts)]


def _node(file: YamlConfig, kind: str, key: str, host: str, directory: str) -> Node:
    head = key.startswith("h")
    role = "head" if head else "worker"
    start = _commands(file, f"{role}_start_commands")
    options = _options(file, role, _HEAD_OPTIONS if head else _WORKER_OPTIONS)
    if start and options:
        raise file.error((role,), f"has no effect beside {role}_start_commands: put the options there")
    mounts = _mounts(file)
    if mounts and kind == "local":
        raise file.error(("file_mounts",), "nodes of type local read this machine's files where they are")
    return Node(
        key, host, head, f"{directory}/{key}", _commands(file, "initialization_commands"),
        _commands(file, "setup_commands") + _commands(file, f"{role}_setup_commands"), start or (_start(kind, head, options),), _env(file), mounts,
    )  # fmt: skip


def _commands(file: YamlConfig, key: str) -> tuple[str, ...]:
    count = len(file.value((key,), list, []))
    return tuple(file.value((key, index), str) for index in range(count))


def _env(file: YamlConfig) -> dict[str, str]:
    found = {}
    for name in file.value(("env",), dict, {}):
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise file.error(("env", name), "is no name of a variable")
        if name.startswith("SHOAL_") and name in ("SHOAL_TMPDIR", "SHOAL_TOKEN_FILE", "SHOAL_ADDRESS"):
            raise file.error(("env", name), "is set by the launcher, for each node")
        found[name] = file.value(("env", name), str)
    return found


def _mounts(file: YamlConfig) -> dict[str, str]:
    found = {}
    for target in file.value(("file_mounts",), dict, {}):
        place: Place = ("file_mounts", target)
        if not isinstance(target, str) or not target.startswith(("/", "~/")) or ".." in Path(target).parts:
            raise file.error(place, "a path on the machine is wanted: /absolute or ~/below/home")
        source = _own_path(file, place)
        if not source or not os.path.exists(source):
            raise file.error(place, f"{source or 'nothing'} is not there on this machine")
        found[target] = source
    return found


def _options(file: YamlConfig, role: str, known: Mapping[str, type]) -> dict[str, Any]:
    file.check_keys((role,), known)
    options: dict[str, Any] = {key: file.value((role, key), known[key]) for key in file.value((role,), dict, {}) if file.data[role][key] is not None}
    for key in ("resources", "labels"):
        for name in options.get(key, {}):
            file.value((role, key, name), float if key == "resources" else str)
    for key in ("num_cpus", "num_gpus", "memory", "object_store_memory", "port", "http_port", "node_port"):
        if options.get(key, 0) < 0:
            raise file.error((role, key), f"{options[key]:g} is negative")
    return options


def _start(kind: str, head: bool, options: Mapping[str, Any]) -> str:
    """The default command. The launcher sets the variables in it."""
    words = ["$SHOAL_COMMAND start"]
    if head:
        words.append("--head")
        if kind == "local":  # beside whatever else runs on this machine
            options = {"port": 0, "http_port": 0, **options}
    else:
        words.append('--address "$SHOAL_HEAD_ADDRESS"')
    words.append('--host "$SHOAL_NODE_IP" --token-file "$SHOAL_TOKEN_FILE"')
    for key, value in options.items():
        text = json.dumps(value) if isinstance(value, dict) else f"{value:g}" if isinstance(value, float) else str(value)
        words.append(f"--{key.replace('_', '-')} {shlex.quote(text)}")
    return " ".join(words)


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
