"""A folder of its own for each test's nodes, and the proof that nothing is left of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import shoal
from shoal import testing
from shoal.cluster_utils import Cluster

# Nothing may be left so long after a driver was killed.
GONE_S = 5.0


class Home:
    """The folder that SHOAL_TMPDIR names in this test."""

    def __init__(self, left: testing.Leftovers) -> None:
        self.path = left.home
        self._left = left
        self._programs: list[subprocess.Popen[str]] = []

    def processes(self) -> dict[int, str]:
        return self._left.processes()

    def leftovers(self) -> tuple[dict[int, str], list[str]]:
        return self.processes(), sorted(os.listdir(self.path))

    def expect_nothing(self, bound_s: float = GONE_S) -> None:
        try:
            testing.wait_until(lambda: not any(self.leftovers()), bound_s)
        except TimeoutError:
            pytest.fail(f"{bound_s:g} s later there still are: {self.leftovers()}")

    def cli(self, *arguments: str, code: int = 0, timeout_s: float = 60.0) -> str:
        """Runs `shoal ...`; its output, both streams. Fails the test when it ends with another code."""
        command = [sys.executable, "-m", "shoal._cli", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s)
        assert done.returncode == code, f"shoal {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}"
        assert "Traceback" not in done.stdout
        return done.stdout

    def driver(self, code: str) -> subprocess.Popen[str]:
        """A Python program that has printed READY."""
        return self.program([sys.executable, "-c", code], "READY")

    def program(self, command: list[str], said: str) -> subprocess.Popen[str]:
        """A program that has printed a line with these words. The test ends it; its pipe is closed here."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._programs.append(process)
        assert process.stdout is not None
        if not any(said in line for line in process.stdout):
            pytest.fail(f"{command[:3]} ended with {process.wait()} before it said {said!r}")
        return process

    def close(self) -> None:
        for process in self._programs:
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def home() -> Iterator[Home]:
    with testing.no_leaks(GONE_S) as left:
        made = Home(left)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def cluster(home: Home, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A head of two CPUs, and this process connected to it. `head_arguments(tmp_path)` of the test's module adds to them."""
    more = getattr(request.module, "head_arguments", None)
    head = {"num_cpus": 2} | (more(request.getfixturevalue("tmp_path")) if more is not None else {})
    with Cluster(initialize_head=True, head_node_args=head) as made:
        shoal.init(address=made.address, log_to_driver=False)
        try:
            yield made
        finally:
            shoal.shutdown()


@pytest.fixture
def head(home: Home) -> Iterator[dict[str, str]]:
    """A head that `shoal start --head` started, by its own node.json."""
    from shoal._supervisor.directories import living_nodes

    home.cli("start", "--head", "--port", "0", "--http-port", "0", "--num-cpus", "2", "--object-store-memory", str(128 << 20))
    node = living_nodes(home.path)[0]
    yield {
        "gcs": node.gcs_address, "http": node.http_address, "node_id": node.node_id, "node_dir": node.node_dir, "pid": str(node.supervisor_pid),
        "secrets": node.secrets_dir,
    }  # fmt: skip
    home.cli("stop")
