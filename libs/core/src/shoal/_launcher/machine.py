"""Where the commands for a node run. Here: this machine. `ssh` has the other kind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

# Limits: how much of a command's output is kept, and how much of that is told when it fails.
_KEPT_BYTES = 1 << 20
_TOLD_LINES = 20
_KILL_TIMEOUT_S = 5.0
# Commands that run now, for `interrupt`.
_running: set[subprocess.Popen[bytes]] = set()
# Before an answer that is read by the launcher: profiles of login shells print too.
_ANSWER = "=shoal-answer="


class LauncherError(RuntimeError):
    """Base of what goes wrong while a cluster is brought up or down."""


class Unreachable(LauncherError):
    """The machine does not let us in."""

    def __init__(self, host: str, why: str) -> None:
        super().__init__(f"{host} cannot be reached: {why}")
        self.host, self.why = host, why


class CommandFailed(LauncherError):
    """A command on a machine ended with another code than 0, or not in time (code None)."""

    def __init__(self, host: str, what: str, code: int | None, output: str, timeout_s: float = 0.0) -> None:
        ended = f"ended with code {code}" if code is not None else f"did not end within {timeout_s:g} s"
        if code == 127:
            ended += " (command not found)"
        lines = output.rstrip().splitlines()
        told = "\n".join(f"    {line}" for line in lines[-_TOLD_LINES:])
        super().__init__(f"on {host}: {what}\n  {ended}" + (f"; its last output:\n{told}" if told else ", without any output"))
        self.host, self.what, self.code, self.output = host, what, code, output


@dataclass(frozen=True)
class Output:
    code: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return "\n".join(part.rstrip() for part in (self.stdout, self.stderr) if part.strip())


class Machine(Protocol):
    """Runs shell text on one host. May be used by one thread at a time; close() is idempotent."""

    host: str

    def execute(self, script: str, *, timeout_s: float, stdin: IO[bytes] | None = None) -> Output:
        """Raises Unreachable; CommandFailed with code None when the time is up."""
        ...

    def interactive(self, script: str, *, terminal: bool, forwards: Sequence[int] = ()) -> int:
        """With this process's own standard streams; the exit code. `forwards`: ports of the machine that appear here."""
        ...

    def close(self) -> None: ...


def run(machine: Machine, script: str, what: str, *, timeout_s: float, stdin: bytes | None = None) -> str:
    """The output. `what`: for people. Raises CommandFailed, Unreachable."""
    with contextlib.ExitStack() as stack:
        file = None
        if stdin is not None:
            file = stack.enter_context(tempfile.TemporaryFile())
            file.write(stdin)
            file.seek(0)
        output = execute(machine, script, what, timeout_s=timeout_s, stdin=file)
    return output.stdout


def execute(machine: Machine, script: str, what: str, *, timeout_s: float, stdin: IO[bytes] | None = None) -> Output:
    """As `run`, with standard input from a file."""
    try:
        output = machine.execute(script, timeout_s=timeout_s, stdin=stdin)
    except CommandFailed as error:
        raise CommandFailed(error.host, what, error.code, error.output, timeout_s) from error
    if output.code:
        raise CommandFailed(machine.host, what, output.code, output.text)
    return output


def ask(machine: Machine, script: str, what: str, *, timeout_s: float) -> str:
    """What the script prints, and nothing that a login shell printed before."""
    return run(machine, f"echo; echo {_ANSWER}\n{script}", what, timeout_s=timeout_s).rpartition(f"{_ANSWER}\n")[2]


class LocalMachine:
    """This machine, as this user."""

    def __init__(self, host: str = "127.0.0.1", env: Mapping[str, str] | None = None) -> None:
        self.host = host
        self._env = env

    def execute(self, script: str, *, timeout_s: float, stdin: IO[bytes] | None = None) -> Output:
        return collect(["bash", "-c", script], self.host, timeout_s=timeout_s, stdin=stdin, env=self._env)

    def interactive(self, script: str, *, terminal: bool, forwards: Sequence[int] = ()) -> int:
        return foreground(["bash", "-c", script], self._env)

    def close(self) -> None:
        pass


def collect(command: Sequence[str], host: str, *, timeout_s: float, stdin: IO[bytes] | None = None, env: Mapping[str, str] | None = None) -> Output:
    """Runs a command to its end. Raises CommandFailed when the time is up."""
    # Into files, not pipes: what it leaves in the background may keep them open for ever.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # A group of its own, which can be killed as a whole; Ctrl-C is for us.
        process = subprocess.Popen(command, stdin=stdin or subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True, env=env)
        _running.add(process)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            raise CommandFailed(host, " ".join(command)[:200], None, f"{_tail(out)}\n{_tail(err)}".strip(), timeout_s) from None
        except BaseException:
            _end(process)
            raise
        finally:
            _running.discard(process)
        # As a shell tells it, and as ssh passes it on.
        return Output(code if code >= 0 else 128 - code, _tail(out), _tail(err))


def interrupt() -> None:
    """Kills the commands that other threads wait for."""
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def foreground(command: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Runs a command with this terminal; Ctrl-C is for the command."""
    process = subprocess.Popen(command, env=env)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait(_KILL_TIMEOUT_S)
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_KILL_TIMEOUT_S)


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _KEPT_BYTES))
    return file.read().decode("utf-8", "replace")
