"""With --import-mode=importlib the folder of the tests is on no path; the builders beside them are imported by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "fakes"))

from redis_process import RedisProcess, redis_process


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for many tests, which name their clusters differently."""
    with redis_process(tmp_path_factory.mktemp("redis")) as server:
        yield server.unix_url


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """One for this test alone."""
    with redis_process(tmp_path / "redis") as server:
        yield server
