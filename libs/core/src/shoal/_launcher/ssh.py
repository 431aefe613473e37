"""Machines over OpenSSH's own client: one authenticated connection each, which all commands share."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .config import Auth
from .machine import LauncherError, Output, Unreachable, collect, foreground

CONNECT_TIMEOUT_S = 10
# The connection counts as broken after this long without an answer.
_ALIVE_EVERY_S, _ALIVE_COUNT = 10, 6
# Of the shared connection after the last command: long enough between two commands, and an end if this process is killed.
_PERSIST_S = 120
_CLOSE_TIMEOUT_S = 5.0
# Reaching a machine may take a proxy's time besides.
_OPEN_TIMEOUT_S = CONNECT_TIMEOUT_S * 3.0
# Code of ssh for its own failures.
_SSH_FAILED = 255


class SshMachine:
    """One host. `control_dir`: a short path, for the shared connection's socket."""

    def __init__(self, host: str, auth: Auth, control_dir: Path) -> None:
        self.host = host
        self._auth = auth
        # ssh makes a temporary name with 17 more bytes beside it, and a Unix socket's path has at most 107.
        self._socket = control_dir / "c"
        self._log = control_dir / "log"
        self._opened = False
        control_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self) -> None:
        """Connects and authenticates. Raises Unreachable with ssh's own words and what to look at."""
        if self._opened:
            return
        if shutil.which("ssh") is None:
            raise LauncherError("the command ssh is missing on this machine; on Debian or Ubuntu: apt install openssh-client")
        # To the background once it is authenticated. Its words go to a file: a pipe would stay open as long as the connection.
        command = ["ssh", "-f", "-N", "-T", "-E", str(self._log), *self._options("yes"), self._target]
        try:
            code = collect(command, self.host, timeout_s=_OPEN_TIMEOUT_S).code
        except LauncherError as error:
            raise Unreachable(self.host, f"no connection within {_OPEN_TIMEOUT_S:g} s") from error
        if code:
            raise Unreachable(self.host, explain(self._words(), self._auth))
        self._opened = True

    def execute(self, script: str, *, timeout_s: float, stdin: IO[bytes] | None = None) -> Output:
        self.open()
        # By `timeout` over there too: what is cut off here would go on there.
        remote = f"timeout -k 5 {max(1, int(timeout_s))} bash --login -c {shlex.quote(script)}"
        output = collect(["ssh", "-T", *self._options("no"), self._target, remote], self.host, timeout_s=timeout_s + _CLOSE_TIMEOUT_S, stdin=stdin)
        if output.code == _SSH_FAILED and not self._alive():
            self._opened = False
            raise Unreachable(self.host, f"the connection broke: {output.stderr.strip() or self._words() or 'without a word'}")
        return output

    def interactive(self, script: str, *, terminal: bool, forwards: Sequence[int] = ()) -> int:
        self.open()
        # One address here: of two, ssh is content when it gets either.
        ports = [word for port in forwards for word in ("-L", f"127.0.0.1:{port}:localhost:{port}")]
        # A connection of its own: the forwarded ports end with it.
        options = self._options("no", shared=not forwards)
        return foreground(["ssh", "-tt" if terminal else "-T", *ports, *options, self._target, f"bash --login -c {shlex.quote(script)}"])

    def close(self) -> None:
        if not self._opened:
            return
        self._opened = False
        subprocess.run(
            ["ssh", *self._options("no"), "-O", "exit", self._target], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=_CLOSE_TIMEOUT_S, check=False,
        )  # fmt: skip

    @property
    def _target(self) -> str:
        return f"{self._auth.user}@{self.host}"

    def _options(self, master: str, shared: bool = True) -> list[str]:
        auth = self._auth
        options = [
            "BatchMode=yes", f"ConnectTimeout={CONNECT_TIMEOUT_S}", f"ServerAliveInterval={_ALIVE_EVERY_S}", f"ServerAliveCountMax={_ALIVE_COUNT}",
            # A host seen for the first time is noted; one whose key has changed is refused.
            "StrictHostKeyChecking=accept-new", f"ControlMaster={master}", f"ControlPath={self._socket if shared else 'none'}", f"ControlPersist={_PERSIST_S}",
            f"Port={auth.port}", "ExitOnForwardFailure=yes", "ForwardAgent=no", "ClearAllForwardings=no",
        ]  # fmt: skip
        if auth.private_key:
            options += ["IdentitiesOnly=yes", f"IdentityFile={_config_quote(auth.private_key)}"]
        if auth.known_hosts:
            options.append(f"UserKnownHostsFile={_config_quote(auth.known_hosts)}")
        if auth.proxy_command:
            options.append(f"ProxyCommand={auth.proxy_command}")
        return [word for option in options for word in ("-o", option)]

    def _alive(self) -> bool:
        command = ["ssh", *self._options("no"), "-O", "check", self._target]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_CLOSE_TIMEOUT_S, check=False).returncode == 0

    def _words(self) -> str:
        try:
            return self._log.read_text("utf-8", "replace").strip()
        except OSError:
            return ""


def explain(words: str, auth: Auth) -> str:
    """ssh's last words in one line, with what to look at.

    >>> explain("ssh: connect to host h port 22: Connection refused", Auth("me"))
    'ssh: connect to host h port 22: Connection refused (is sshd running there, and is auth.ssh_port, 22, its port?)'
    """
    lines = [line.strip() for line in words.splitlines() if line.strip() and not line.startswith(("Warning: Permanently added", "@@@"))]
    told = " ".join(lines[-1:]) or "ssh ended without a word"
    key = f"the key {auth.private_key}" if auth.private_key else "this user's keys and agent"
    hints = {
        "Permission denied": f"does {auth.user} there accept {key}? A key with a passphrase must be in the agent",
        "Host key verification failed": "the machine's key is another one than is known; if that is right, `ssh-keygen -R` the old one",
        "Could not resolve hostname": "is its name right?",
        "Connection refused": f"is sshd running there, and is auth.ssh_port, {auth.port}, its port?",
        "timed out": "is the machine running, and is its address reachable from here?",
        "No route to host": "is the machine running, and is its address reachable from here?",
    }
    hint = next((hint for sign, hint in hints.items() if sign.lower() in words.lower()), "")
    return f"{told} ({hint})" if hint else told


def control_directory() -> tempfile.TemporaryDirectory[str]:
    """For the sockets of shared connections; short, whatever TMPDIR says."""
    return tempfile.TemporaryDirectory(prefix="shoal-ssh-", dir="/tmp", ignore_cleanup_errors=True)


def _config_quote(path: str) -> str:
    """For ssh's configuration, where % begins a token."""
    return '"' + path.replace("%", "%%") + '"'
