"""What is to be done, from what is wanted, what was launched, and what runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .config import ClusterConfig, Node

# Which running nodes are started anew: those whose part of the file has changed, none, or all.
Restart = Literal["changed", "never", "always"]


@dataclass(frozen=True)
class Launched:
    """A node that the record knows. An empty digest: that was begun, and is not known to have ended well."""

    host: str
    directory: str
    head: bool
    setup_digest: str = ""
    start_digest: str = ""


@dataclass(frozen=True)
class Running:
    """A node that runs in its folder on its machine."""

    node_id: str
    head: bool
    gcs_address: str
    http_address: str = ""


@dataclass(frozen=True)
class Observed:
    """What was found. A key that is missing in `running`: nothing runs there. `alive`: the nodes that the head counts as alive; None: nobody could ask it."""

    running: Mapping[str, Running] = field(default_factory=dict)
    alive: frozenset[str] | None = None


@dataclass(frozen=True)
class Step:
    """For one node, with why."""

    key: str
    host: str
    directory: str
    why: str


@dataclass(frozen=True)
class Plan:
    """In this order: stop; prepare, each machine by itself; start the head; start the workers."""

    stop: tuple[Step, ...] = ()
    prepare: tuple[Step, ...] = ()
    start_head: Step | None = None
    start_workers: tuple[Step, ...] = ()
    keep: tuple[str, ...] = ()

    @property
    def interrupts(self) -> bool:
        """Whether nodes that run end by it."""
        return bool(self.stop)

    @property
    def empty(self) -> bool:
        return not (self.stop or self.prepare or self.start_head or self.start_workers)


def plan_up(
    config: ClusterConfig, launched: Mapping[str, Launched], observed: Observed, contents: Mapping[str, str], *, restart: Restart = "changed",
    setup: bool = True,
) -> Plan:  # fmt: skip
    """From here to a cluster that is what the file says. `contents`: for each key, a digest of its machine's files. `setup`: whether machines may be set up."""
    why = {node.key: _why_not(config, node, launched.get(node.key), observed, contents, restart) for node in config.nodes}
    head_again = why[config.head.key]
    if head_again:
        why = {node.key: why[node.key] or ("the head is started anew" if node.key in observed.running else "is not running") for node in config.nodes}
    wanted = {node.key: node.directory for node in config.nodes}
    gone = [
        Step(key, node.host, node.directory, "has another folder now" if key in wanted else "is no longer in the file")
        for key, node in launched.items() if wanted.get(key) != node.directory
    ]  # fmt: skip
    again = [_step(node, why[node.key]) for node in config.nodes if why[node.key] and node.key in observed.running]
    prepare = [_step(node, told) for node in config.nodes if setup and (told := _why_prepare(node, launched.get(node.key), contents))]
    return Plan(
        # Workers first: a node that leaves in good order says goodbye to its head.
        stop=tuple(sorted([*gone, *again], key=lambda step: step.key == config.head.key)),
        prepare=tuple(prepare),
        start_head=_step(config.head, head_again) if head_again else None,
        start_workers=tuple(_step(node, why[node.key]) for node in config.workers if why[node.key]),
        keep=tuple(node.key for node in config.nodes if not why[node.key]),
    )


def plan_down(config: ClusterConfig, launched: Mapping[str, Launched], *, workers_only: bool = False) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """What ends first, and what ends then: the workers, and the head. Of the record and of the file, which may have changed since."""
    found = {node.key: (node.host, node.directory, node.head) for node in config.nodes}
    found |= {key: (node.host, node.directory, node.head) for key, node in launched.items()}
    steps = [(head, Step(key, host, directory, "")) for key, (host, directory, head) in found.items()]
    heads = () if workers_only else tuple(step for head, step in steps if head)
    return tuple(step for head, step in steps if not head), heads


def setup_digest(node: Node, contents: Mapping[str, str]) -> str:
    """Of everything that setting this machine up depends on."""
    return f"{node.setup_digest}-{contents.get(node.key, '')}"


def _step(node: Node, why: str) -> Step:
    return Step(node.key, node.host, node.directory, why)


def _why_prepare(node: Node, launched: Launched | None, contents: Mapping[str, str]) -> str:
    if launched is None:
        return "is new"
    if not launched.setup_digest:
        return "was not set up to the end"
    return "" if launched.setup_digest == setup_digest(node, contents) else "its setup has changed"


def _why_not(config: ClusterConfig, node: Node, launched: Launched | None, observed: Observed, contents: Mapping[str, str], restart: Restart) -> str:
    """Why the node that runs, if one does, will not do; empty when it will."""
    running = observed.running.get(node.key)
    if running is None:
        return "is not running"
    if running.head != node.head:
        return "runs as a head" if running.head else "runs as a worker"
    head = observed.running.get(config.head.key)
    if not node.head and head is not None and running.gcs_address != head.gcs_address:
        return f"belongs to another head, {running.gcs_address}"
    if not node.head and observed.alive is not None and running.node_id not in observed.alive:
        return "is not alive for the head"
    if restart == "always":
        return "all are started anew"
    if restart == "never" or launched is None:
        return ""
    if launched.start_digest != node.start_digest:
        return "its start has changed" if launched.start_digest else "was not started to the end"
    return "" if launched.setup_digest == setup_digest(node, contents) else "its setup has changed"
