"""A cluster comes with init() and goes with its program, however that ends."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import shoal
from shoal._supervisor.directories import living_nodes
from shoal.util import placement_group
from shoal.util.metrics import Counter

# `SHOAL_SOAK_CYCLES=100 pytest tests/cluster/test_lifecycle.py` is the soak.
CYCLES = int(os.environ.get("SHOAL_SOAK_CYCLES", "5"))
KILLS = int(os.environ.get("SHOAL_SOAK_KILLS", "2"))

BUSY_DRIVER = """
import time, shoal
shoal.init("local", num_cpus=2, object_store_memory=128 << 20, log_to_driver=False)

@shoal.remote
def spin(path):
    open(path, "w").close()
    time.sleep(600)

@shoal.remote
class Holder:
    def __init__(self):
        import subprocess
        self.child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        self.data = bytearray(1 << 20)
    def ready(self):
        return True

holder = Holder.options(num_cpus=0).remote()
shoal.get(holder.ready.remote(), timeout=60)
started = shoal.put(bytes(1 << 20))
import tempfile, os
mark = tempfile.mktemp(dir=os.environ["SHOAL_TMPDIR"], prefix="mark-")
running = spin.remote(mark)
while not os.path.exists(mark):
    time.sleep(0.01)
os.unlink(mark)
print("READY", flush=True)
time.sleep(600)
"""

QUIET_DRIVER = """
import time, shoal
shoal.init("local", num_cpus=1, object_store_memory=128 << 20)
print("READY", flush=True)
time.sleep(600)
"""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def init(**options):
    return shoal.init("local", num_cpus=1, object_store_memory=128 << 20, log_to_driver=False, **options)


@pytest.mark.timeout(60 + 15 * CYCLES)
def test_cycles_of_init_and_shutdown_leave_nothing(home):
    def cycle():
        init()

        @shoal.remote
        def one():
            return 1

        assert shoal.get(one.remote(), timeout=60) == 1
        shoal.shutdown()
        home.expect_nothing(1.0)

    cycle()  # what is imported and opened once
    before, threads = descriptors(), threading.active_count()
    for _ in range(CYCLES):
        cycle()
    assert descriptors() <= before
    assert threading.active_count() <= threads


def test_clusters_that_have_ended_leave_nothing_mapped(home):
    def mapped():
        gc.collect()
        return sum("memfd:shoal-" in line for line in Path("/proc/self/maps").read_text().splitlines())

    before = mapped()  # what other programs of this process still look at
    for _ in range(2):
        init()
        assert shoal.get(shoal.put(1)) == 1
        assert mapped() > before
        shoal.shutdown()
        assert mapped() <= before


def test_what_a_program_looks_at_outlives_its_cluster_and_nothing_else_of_the_arena_does(home):
    def arenas():
        gc.collect()
        return {line.split()[4] for line in Path("/proc/self/maps").read_text().splitlines() if "shoal-arena" in line}  # inodes

    before = arenas()  # what other programs of this process still look at
    init()
    array = shoal.get(shoal.put(np.arange(1_000_000)))
    assert placement_group([{"CPU": 1}]).wait(60)
    Counter("lifecycle_views").inc()
    shoal.shutdown()
    assert int(array[-1]) == 999_999
    assert len(arenas() - before) == 1
    del array
    assert not arenas() - before


@pytest.mark.timeout(60 + 30 * KILLS)
def test_a_killed_driver_leaves_nothing(home):
    for _ in range(KILLS):
        driver = home.driver(BUSY_DRIVER)
        assert len(home.processes()) > 5
        driver.kill()
        driver.wait()
        home.expect_nothing()


@pytest.mark.timeout(120)
def test_a_driver_killed_while_its_cluster_starts_leaves_nothing(home):
    for moment in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7):
        driver = subprocess.Popen([sys.executable, "-c", QUIET_DRIVER], stdout=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            driver.wait(moment)
        driver.kill()
        driver.wait()
        home.expect_nothing()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_gets_a_signal_leaves_nothing(home, number):
    driver = home.driver(QUIET_DRIVER)
    driver.send_signal(number)
    driver.wait(30)
    home.expect_nothing()


@pytest.mark.timeout(90)
def test_a_killed_supervisor_leaves_nothing(home):
    driver = home.driver(BUSY_DRIVER)
    os.kill(living_nodes(home.path)[0].supervisor_pid, signal.SIGKILL)
    try:
        home_without_driver = lambda: set(home.processes()) == {driver.pid} and not os.listdir(home.path)  # noqa: E731
        deadline = time.monotonic() + 5
        while not home_without_driver() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert home_without_driver(), home.leftovers()
    finally:
        driver.kill()
        driver.wait()


@pytest.mark.timeout(90)
def test_driver_and_supervisor_killed_at_once_leave_nothing(home):
    driver = home.driver(QUIET_DRIVER)
    supervisor = living_nodes(home.path)[0].supervisor_pid
    driver.kill()
    os.kill(supervisor, signal.SIGKILL)
    driver.wait()
    home.expect_nothing()


@pytest.mark.timeout(90)
def test_private_clusters_do_not_meet(home):
    first, second = home.driver(QUIET_DRIVER), home.driver(QUIET_DRIVER)
    try:
        nodes = living_nodes(home.path)
        assert len(nodes) == 2
        assert nodes[0].gcs_address != nodes[1].gcs_address
        with pytest.raises(ConnectionError, match="no cluster of this user runs"):
            shoal.init("auto")
        for driver in (first, second):
            driver.kill()
    finally:
        first.kill()
        second.kill()
        first.wait()
        second.wait()


@pytest.mark.timeout(60)
def test_a_second_program_reaches_a_private_cluster_by_its_address(home):
    init()
    try:
        code = f"import shoal; shoal.init({shoal.get_runtime_context().gcs_address!r}); print(shoal.cluster_resources()['CPU'])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
        assert done.stdout.strip() == "1.0", done.stderr
    finally:
        shoal.shutdown()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("auto", ConnectionError, "shoal start --head"),
        ("127.0.0.1:1", ConnectionError, "nobody answers"),
        ("nowhere", ConnectionError, "HOST:PORT"),
        ("ray://127.0.0.1:10001", ConnectionError, "not supported"),
    ],
)
def test_an_address_without_a_cluster_is_refused_within_ten_seconds(home, address, error, message):
    began = time.monotonic()
    with pytest.raises(error, match=message):
        shoal.init(address)
    assert time.monotonic() - began < 10
    assert not shoal.is_initialized()


@pytest.mark.timeout(60)
def test_options_that_cannot_be_are_refused_before_anything_starts(home):
    with pytest.raises(ValueError, match="object_store_memory"):
        shoal.init("local", object_store_memory=1000)
    with pytest.raises(ValueError, match="_system_config"):
        shoal.init("local", _system_config={"no_such_service": 1})
    assert not os.listdir(home.path)


@pytest.mark.timeout(60)
def test_a_taken_http_port_is_named(home):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"port {port}.*--http-port"):
            init(dashboard_port=port)
    home.expect_nothing(1.0)


@pytest.mark.timeout(60)
def test_a_service_that_cannot_start_is_one_clear_error(home):
    with pytest.raises(RuntimeError, match="cannot start|unexpected keyword"):
        init(_system_config={"gcs": {"no_such_setting": 1}})
    home.expect_nothing(1.0)


@pytest.mark.timeout(60)
def test_a_folder_that_others_can_write_is_refused(home, monkeypatch):
    open_to_all = Path(home.path, "open")
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.setenv("SHOAL_TMPDIR", str(open_to_all))
    with pytest.raises(RuntimeError, match="can be written by others"):
        init()
    open_to_all.rmdir()


@pytest.mark.timeout(60)
def test_a_folder_with_too_long_a_name_is_refused(home):
    with pytest.raises(RuntimeError, match="leave room for Unix sockets"):
        init(_temp_dir=str(home.path / ("x" * 80)))


@pytest.mark.timeout(60)
def test_a_full_disk_is_named(home):
    """In a mount namespace of its own, where a file system of 64 KiB can be made."""
    program = "import shoal; shoal.init('local', num_cpus=1, object_store_memory=128 << 20)"
    script = f"mount -t tmpfs -o size=64k,mode=700 none {home.path} && head -c 1M /dev/zero > {home.path}/fill; exec {sys.executable} -c \"{program}\""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces for this user")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode != 0
    assert re.search(f"RuntimeError: .*{home.path}.*No space left on device", done.stderr), done.stderr
