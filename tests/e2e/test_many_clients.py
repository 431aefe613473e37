"""Many at once: drivers on one cluster, awaits on one loop, test processes with clusters of their own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import shoal
from shoal import _runtime

DRIVERS = 16
AWAITS = 10_000

DRIVER = """
import sys
import shoal
address, number = sys.argv[1], int(sys.argv[2])
shoal.init(address, log_to_driver=False)

@shoal.remote
def add(x):
    return x + number

@shoal.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.n = 0
    def up(self):
        self.n += 1
        return self.n

counter = Counter.remote()
assert shoal.get([add.remote(i) for i in range(200)], timeout=100) == [i + number for i in range(200)]
assert shoal.get([counter.up.remote() for _ in range(200)], timeout=100) == list(range(1, 201))
data = shoal.put(bytes([number]) * 300_000)
assert shoal.get(shoal.remote(len).remote(data), timeout=100) == 300_000
"""


def test_sixteen_drivers_at_once_on_one_cluster(cluster: shoal.Context, wait_until: Callable[..., object]) -> None:
    before = shoal.available_resources()["CPU"]
    command = [sys.executable, "-c", DRIVER, cluster["gcs_address"]]
    drivers = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for n in range(DRIVERS)]
    ends = []
    for driver in drivers:
        try:
            ends.append((driver.communicate(timeout=110), driver.returncode))
        except subprocess.TimeoutExpired:
            driver.kill()
            ends.append((driver.communicate(), "it did not end"))
    assert [code for _, code in ends] == [0] * DRIVERS, ends
    wait_until(lambda: shoal.available_resources().get("CPU") == before, what="what they held to come back")


def test_ten_thousand_awaits_in_flight(cluster: shoal.Context) -> None:
    @shoal.remote(num_cpus=0)
    class Gate:
        def __init__(self) -> None:
            self.opened = asyncio.Event()

        async def open(self) -> None:
            self.opened.set()

        async def passed(self, n: int) -> int:
            await self.opened.wait()
            return n

    async def main() -> None:
        gate = Gate.options(max_concurrency=AWAITS + 1).remote()
        began, ticks = threading.active_count(), 0

        async def wait_for(n: int) -> int:
            return await gate.passed.remote(n)

        awaits = [asyncio.ensure_future(wait_for(n)) for n in range(AWAITS)]
        while _runtime.state.engine.stats()["tasks"] < AWAITS:
            await asyncio.sleep(0.01)
        for _ in range(20):  # the loop goes on
            await asyncio.sleep(0.001)
            ticks += 1
        assert ticks == 20 and not any(one.done() for one in awaits)
        assert threading.active_count() - began <= 2, threading.enumerate()
        await gate.open.remote()
        assert await asyncio.gather(*awaits) == list(range(AWAITS))

    asyncio.run(asyncio.wait_for(main(), 100))


SUITE = """
import os
from pathlib import Path
import pytest
import shoal

@shoal.remote
def where():
    return shoal.get_runtime_context().get_node_id()

@pytest.mark.parametrize("n", range(4))
def test_a_private_cluster(shoal_cluster, n):
    cluster = shoal_cluster(1, num_cpus=1)
    assert len(shoal.nodes()) == 1
    node = shoal.get(where.remote(), timeout=60)
    assert node == cluster.head_node.node_id
    Path(__file__).with_name(f"{os.environ['PYTEST_XDIST_WORKER']}-{node}").touch()
"""


def test_pytest_in_parallel_with_private_clusters(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["shoal.testing"]\n')
    command = [sys.executable, "-m", "pytest", "-n", "2", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path / "test_suite.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=tmp_path, check=False)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr
    ran = [path.name.split("-") for path in tmp_path.glob("gw*-*")]
    assert len({node for _, node in ran}) == 4 and {worker for worker, _ in ran} == {"gw0", "gw1"}, ran
