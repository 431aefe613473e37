"""What a container of Shoal's image runs: a node, or any other command.

    head [OPTION...]       a head: `shoal start --head`, with the options behind it
    worker [OPTION...]     a node that joins the head at $SHOAL_HEAD
    COMMAND [ARGUMENT...]  that command

Variables: SHOAL_HOST, the address that other nodes reach this container at (default: its own); SHOAL_HEAD, HOST:PORT of the head's control store;
SHOAL_TOKEN_SOURCE, the cluster's token as a file (default /run/secrets/shoal-token); SHOAL_WAIT_S, how long a worker waits for its head (default 300).
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

PORT, NODE_PORT, HTTP_PORT = 6380, 6381, 8265
TOKEN_SOURCE = "/run/secrets/shoal-token"
WAIT_S = 300.0
_POLL_S = 0.5


def fail(text: str) -> NoReturn:
    sys.exit(f"shoal: {text}")


def command_line(arguments: list[str], env: Mapping[str, str], token: str, host: str) -> list[str]:
    """What is executed. Options given behind the role come last, and so win."""
    role, options = arguments[0], arguments[1:]
    common = ["--block", "--host", host, "--node-port", str(NODE_PORT), "--token-file", token]
    if role == "head":
        return ["shoal", "start", "--head", *common, "--port", str(PORT), "--http-host", "0.0.0.0", "--http-port", str(HTTP_PORT), *options]
    return ["shoal", "start", "--address", env["SHOAL_HEAD"], *common, *options]


def own_address(env: Mapping[str, str]) -> str:
    if given := env.get("SHOAL_HOST"):
        return given
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError as error:
        fail(f"this container's own address is not known ({error}); set SHOAL_HOST")


def private_token(source: Path, directory: Path) -> str:
    """A copy that only this user can read: orchestrators mount secrets with modes that Shoal refuses."""
    try:
        text = source.read_bytes()
    except OSError as error:
        fail(f"the cluster's token cannot be read from {source}: {error.strerror}; mount it there for uid {os.getuid()}, or set SHOAL_TOKEN_SOURCE")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "token"
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
    new.rename(path)
    return str(path)


def wait_for(address: str, timeout_s: float) -> None:
    """Until the head's control store takes connections."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        fail(f"SHOAL_HEAD is {address!r}; HOST:PORT of the head is wanted")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), 3.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                fail(f"no control store answered at {address} within {timeout_s:g} s: {error}")
        time.sleep(_POLL_S)


def main(arguments: list[str]) -> NoReturn:
    if not arguments:
        fail("say what to run: head, worker, or a command")
    if arguments[0] in ("head", "worker"):
        home = Path(os.environ.get("SHOAL_TMPDIR") or f"/tmp/shoal-{os.getuid()}")
        os.environ["SHOAL_TMPDIR"] = str(home)  # for what is executed in this container later
        token = private_token(Path(os.environ.get("SHOAL_TOKEN_SOURCE") or TOKEN_SOURCE), home)
        if arguments[0] == "worker":
            if not os.environ.get("SHOAL_HEAD"):
                fail("a worker needs SHOAL_HEAD, HOST:PORT of the head's control store")
            wait_for(os.environ["SHOAL_HEAD"], float(os.environ.get("SHOAL_WAIT_S") or WAIT_S))
        arguments = command_line(arguments, os.environ, token, own_address(os.environ))
    try:
        os.execvp(arguments[0], arguments)
    except OSError as error:
        fail(f"{arguments[0]} cannot be run: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
