"""Carries plans out: machines in parallel, each step noted before it begins."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from . import mounts, script
from .config import ClusterConfig, Node
from .machine import CommandFailed, LauncherError, LocalMachine, Machine, ask, execute, interrupt, run
from .plan import Launched, Observed, Plan, Restart, Running, Step, plan_down, plan_up, setup_digest
from .record import Record
from .ssh import SshMachine, control_directory

T = TypeVar("T")
# Limit: machines that are worked on at the same time.
MAX_PARALLEL = 32
_OBSERVE_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 60.0


class SeveralFailed(LauncherError):
    """What went wrong on several machines."""

    def __init__(self, errors: Iterable[Exception]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(str(error) for error in self.errors))


@dataclass(frozen=True)
class HeadShell:
    """The head's machine, the control store's address, and what programs find set there: the file's variables and ours."""

    machine: Machine
    address: str
    own: Mapping[str, str]
    env: Mapping[str, str]

    def run(self, text: str, *, terminal: bool = False, forwards: Sequence[int] = ()) -> int:
        """With this process's own standard streams; the exit code."""
        return self.machine.interactive(script.with_environment(text, self.own, self.env), terminal=terminal, forwards=forwards)


class Launcher:
    """One cluster of a file; a context manager, since it may hold connections. `tell` is given a line for people at each step, from any thread."""

    def __init__(self, config: ClusterConfig, tell: Callable[[str], None], record: Record | None = None) -> None:
        self.config = config
        self.record = record or Record(config.name)
        self._tell = tell
        self._machines: dict[str, Machine] = {}
        self._open = contextlib.ExitStack()
        # Elsewhere it is found by PATH, which the file's `env` may set.
        self.shoal = f"{shlex.quote(sys.executable)} -m shoal._cli" if config.provider == "local" else "shoal"
        self._control = Path(self._open.enter_context(control_directory())) if config.provider == "ssh" else Path()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._each(list(self._machines), lambda key: self._machines[key].close())
        finally:
            self._open.close()

    # -- what is asked of it ------------------------------------------------------------------------

    def up(self, *, restart: Restart = "changed", setup: bool = True, confirm: Callable[[Plan], bool] = lambda _: True) -> Plan | None:
        """Brings the cluster to what the file says; the plan that was carried out. None: `confirm`, which is asked before running nodes end, said no.

        Raises LauncherError after everything has been done that could be."""
        config = self.config
        with self.record.locked():
            self._expect_provider()
            contents = dict.fromkeys((node.key for node in config.nodes), mounts.digest(config.head.mounts))
            observed = self.observe()
            plan = plan_up(config, self.record.nodes, observed, contents, restart=restart, setup=setup)
            if plan.interrupts and not confirm(plan):
                return None
            self._carry_out(plan, contents, observed)
        return plan

    def down(self, *, workers_only: bool = False) -> int:
        """Ends the cluster's nodes and removes what it left on machines, and its record; for how many nodes.

        Raises LauncherError when some could not be reached: those stay in the record."""
        with self.record.locked():
            workers, heads = plan_down(self.config, self.record.nodes, workers_only=workers_only)
            errors = [*self._stop(workers)[1], *self._stop(heads)[1]]
            if not errors and not workers_only:
                self.record.remove()
            _raise(errors)
        return len(workers) + len(heads)

    def observe(self) -> Observed:
        """What runs now. Raises Unreachable, or SeveralFailed when several machines cannot be reached."""
        found, errors = self._each([node.key for node in self.config.nodes], self._running)
        _raise(errors)
        running = {key: node for key, node in found.items() if node is not None}
        return Observed(running, self._alive(running.get(self.config.head.key)))

    def head(self) -> HeadShell:
        """Where programs of the cluster run. Raises LauncherError when it is not up."""
        head = self.config.head
        running = self._running(head.key)
        if running is None:
            raise LauncherError(
                f"the cluster {self.config.name} is not up: nothing runs in {head.directory} on {head.host}. `shoal up {self.config.path}` starts it"
            )
        env = script.environment(head, self.shoal, running.gcs_address) | {"SHOAL_ADDRESS": running.gcs_address}
        return HeadShell(self.machine(head.key), running.gcs_address, head.env, env)

    def machine(self, key: str) -> Machine:
        found = self._machines.get(key)
        if found is None:
            host = self._hosts()[key]
            # Nodes of this machine are told apart by their keys.
            found = LocalMachine(key, self._own_environment()) if self._local else SshMachine(host, self.config.auth, self._control / key)
            self._machines[key] = found
        return found

    def _own_environment(self) -> dict[str, str]:
        """`shoal` and `python` are those that run this."""
        return {**os.environ, "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])}

    # -- carrying out -------------------------------------------------------------------------------

    def _expect_provider(self) -> None:
        known = self.record.provider
        if self.record.nodes and known != self.config.provider:
            raise LauncherError(
                f"a cluster named {self.config.name} was launched with provider.type {known}, and the file says {self.config.provider}: "
                f"run `shoal down` with the old file first, or choose another cluster_name"
            )
        self.record.provider = self.config.provider

    def _carry_out(self, plan: Plan, contents: Mapping[str, str], observed: Observed) -> None:
        stopped, errors = self._stop(plan.stop)
        # A node that did not end must not get a second one beside it.
        stuck = {step.key for step in plan.stop} - set(stopped)
        nodes = {node.key: node for node in self.config.nodes}
        # On this machine one after another: the same commands, in the same places.
        parallel = 1 if self._local else MAX_PARALLEL
        prepared, failed = self._each([step.key for step in plan.prepare if step.key not in stuck], lambda key: self._prepare(nodes[key], contents), parallel)
        errors += failed
        stuck |= {step.key for step in plan.prepare} - set(prepared)
        head = observed.running.get(self.config.head.key)
        if plan.start_head is not None:
            begun, failed = self._each([key for key in (plan.start_head.key,) if key not in stuck], lambda key: self._start(nodes[key], ""))
            errors += failed
            head = begun.get(plan.start_head.key)
        if head is not None:  # else there is nothing to join
            address = head.gcs_address
            ready = [step.key for step in plan.start_workers if step.key not in stuck]
            errors += self._each(ready, lambda key: self._start(nodes[key], address))[1]
        _raise(errors)

    def _label(self, node: Node | Step) -> str:
        return node.key if self._local else node.host

    @property
    def _local(self) -> bool:
        return self.config.provider == "local"

    def _prepare(self, node: Node, contents: Mapping[str, str]) -> None:
        before = self.record.nodes.get(node.key) or Launched(node.host, node.directory, node.head)
        self.record.note(node.key, replace(before, host=node.host, directory=node.directory, head=node.head, setup_digest=""))
        self._commands(node, "initialization_commands", node.initialization)
        for target, source in node.mounts.items():
            self._tell(f"[{self._label(node)}] copies {source} to {target}")
            self._mount(node, source, target)
        self._commands(node, "setup_commands", node.setup)
        self.record.note(node.key, replace(self.record.nodes[node.key], setup_digest=setup_digest(node, contents)))

    def _mount(self, node: Node, source: str, target: str) -> None:
        with tempfile.TemporaryFile() as file:
            mounts.pack(source, target, file)
            file.seek(0)
            execute(self.machine(node.key), script.unpack(target), f"file_mounts: {target}", timeout_s=self.config.setup_timeout_s, stdin=file)

    def _commands(self, node: Node, what: str, commands: tuple[str, ...], head_address: str = "") -> None:
        env = script.environment(node, self.shoal, head_address)
        for number, command in enumerate(commands, 1):
            shown = command if len(command) <= 100 else command[:99] + "…"
            if what != "start":
                self._tell(f"[{self._label(node)}] {what} {number} of {len(commands)}: {shown}")
            timeout = _START_TIMEOUT_S if what == "start" else self.config.setup_timeout_s
            run(self.machine(node.key), script.with_environment(command, node.env, env), f"{what} {number} of {len(commands)}: {command}", timeout_s=timeout)

    def _start(self, node: Node, head_address: str) -> Running:
        before = self.record.nodes.get(node.key) or Launched(node.host, node.directory, node.head)
        self.record.note(node.key, replace(before, host=node.host, directory=node.directory, head=node.head, start_digest=""))
        from shoal_base.auth import make_secret_file, read_secret

        make_secret_file(self.record.token_path)
        token = read_secret(self.record.token_path) + b"\n"
        machine = self.machine(node.key)
        run(machine, script.place_token(node.directory), f"making {node.directory} with the cluster's token", timeout_s=_OBSERVE_TIMEOUT_S, stdin=token)
        self._commands(node, "start", node.start, head_address)
        running = self._running(node.key)
        if running is None or running.head != node.head:
            role = "head" if node.head else "worker"
            raise LauncherError(
                f"on {self._label(node)}: the {role}'s start commands ended well, but no {role} runs in {node.directory}: they must run `shoal start` "
                f"with the SHOAL_TMPDIR that they find set"
            )
        if not node.head and running.gcs_address != head_address:
            raise LauncherError(
                f"on {self._label(node)}: the node has joined {running.gcs_address}, not this cluster's head at {head_address} ($SHOAL_HEAD_ADDRESS)"
            )
        self.record.note(node.key, replace(self.record.nodes[node.key], start_digest=node.start_digest))
        self._tell(f"[{self._label(node)}] {'head' if node.head else 'worker'} {running.node_id[:12]} runs")
        return running

    def _stop(self, steps: Iterable[Step]) -> tuple[dict[str, None], list[LauncherError]]:
        by_key = {step.key: step for step in steps}

        def one(key: str) -> None:
            step = by_key[key]
            known = self.record.nodes.get(key)
            text = script.with_environment(script.stop(step.directory, self.shoal), self.config.head.env, {})
            run(self.machine(key), text, f"stopping the node in {step.directory}", timeout_s=_STOP_TIMEOUT_S)
            if known is not None:
                wanted = any(node.key == key for node in self.config.nodes)
                # What was set up stays set up.
                self.record.note(key, replace(known, start_digest="") if wanted and step.why else None)
                self._tell(f"[{self._label(step)}] stopped" + (f": {step.why}" if step.why else ""))

        return self._each(list(by_key), one)

    # -- observing ----------------------------------------------------------------------------------

    def _running(self, key: str) -> Running | None:
        node = next(node for node in self.config.nodes if node.key == key)
        text = script.with_environment(script.observe(node.directory, self.shoal), node.env, {})
        try:
            answer = ask(self.machine(key), text, f"looking for a node in {node.directory}", timeout_s=_OBSERVE_TIMEOUT_S)
        except CommandFailed as error:
            if error.code == 127:  # a folder, and no Shoal: the setup did not come so far
                return None
            raise
        found = [Running(one["node_id"], one["head"], one["gcs_address"], one["http_address"]) for one in json.loads(answer)]
        return found[0] if found else None

    def _alive(self, head: Running | None) -> frozenset[str] | None:
        if head is None or not head.http_address:
            return None
        node = self.config.head
        text = script.with_environment(script.ask_head(node.directory, self.shoal), node.env, {})
        try:
            status = json.loads(ask(self.machine(node.key), text, "asking the head for its nodes", timeout_s=_OBSERVE_TIMEOUT_S))
            return frozenset(one["node_id"] for one in status["nodes"] if one["state"] == "ALIVE")
        except (CommandFailed, ValueError) as error:
            self._tell(f"[{self._label(node)}] the head does not say which nodes are alive: {error}")
            return None

    def _hosts(self) -> dict[str, str]:
        return {key: node.host for key, node in self.record.nodes.items()} | {node.key: node.host for node in self.config.nodes}

    def _each(self, keys: list[str], work: Callable[[str], T], parallel: int = MAX_PARALLEL) -> tuple[dict[str, T], list[LauncherError]]:
        """Results by key, and what went wrong for the others."""
        if not keys:
            return {}, []
        results: dict[str, T] = {}
        errors: list[LauncherError] = []
        for key in keys:
            self.machine(key)  # made here, by one thread
        with ThreadPoolExecutor(min(parallel, len(keys)), thread_name_prefix="shoal-launcher") as pool:
            futures = {key: pool.submit(work, key) for key in keys}
            try:
                for key, future in futures.items():
                    try:
                        results[key] = future.result()
                    except LauncherError as error:
                        errors.append(error)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                interrupt()
                raise
        return results, errors


def _raise(errors: list[LauncherError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise SeveralFailed(errors)
