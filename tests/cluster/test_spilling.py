"""Spilled values when the store's process or the whole node dies, and values on another node's disk."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import shoal
from shoal.testing import wait_until

MIB = 1 << 20
SIZE = 8 * MIB
ROOM = 96 * MIB
BOUND_S = 30.0
KILLS, SEED = int(os.environ.get("SHOAL_STORE_KILLS", "3")), int(os.environ.get("SHOAL_SEED", "1"))


def head_arguments(tmp_path: Path) -> dict:
    return {"object_store_memory": ROOM, "system_config": {"objectstore": {"spill_dirs": [str(tmp_path / "disk")]}}}


def runs_anew(node, old: int) -> bool:
    try:
        return node.pid_of("objectstore") != old
    except LookupError:  # between two of them
        return False


def array(n):
    return np.full(SIZE // 8, n)


@pytest.mark.timeout(90)
def test_a_store_killed_among_spilled_values_comes_back_with_all_of_them(cluster, tmp_path):
    node = cluster.head_node
    refs = [shoal.put(array(n)) for n in range(10)]
    for round_ in range(3):
        old = node.kill("objectstore")
        refs += [shoal.put(array(len(refs) + k)) for k in range(6)]
        for n in range(round_, len(refs), 3):
            assert shoal.get(refs[n], timeout=30)[-1] == n
        wait_until(lambda old=old: runs_anew(node, old), BOUND_S, "the store runs again")
    for n, ref in enumerate(refs):
        assert shoal.get(ref, timeout=30)[0] == n
    del refs, ref
    wait_until(lambda: not list((tmp_path / "disk").glob("*/*.spill")), BOUND_S, "files go with their objects")


def named(name: int, size: int = SIZE) -> np.ndarray:
    """An array that says in each of its words which one it is."""
    return np.full(size // 8, name)


def is_named(value: np.ndarray, name: int) -> None:
    wrong = np.flatnonzero(value != name)
    assert not len(wrong), f"array {name} holds array {value[wrong[0]]} from word {wrong[0]} on, in {len(wrong)} of {len(value)} words"


@pytest.mark.timeout(90 + 10 * KILLS)
def test_threads_that_put_and_read_at_once_get_their_own_values_whatever_becomes_of_the_store(cluster):
    """Four threads of the driver and two workers, in an arena that spills all the while: what one of them was granted another one may use."""

    @shoal.remote(max_retries=-1)
    def make(*names):
        return [named(name) for name in names]

    node, names, ended = cluster.head_node, itertools.count(1), threading.Event()
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(SEED * 10 + seed)
        try:
            while not ended.is_set():
                mine = [next(names) for _ in range(5)]
                refs = [shoal.put(named(name)) for name in mine]
                made = [next(names) for _ in range(2)]
                refs += make.options(num_returns=2).remote(*made)
                order = list(zip(mine + made, refs, strict=True)) * 2
                rng.shuffle(order)
                for name, ref in order:
                    is_named(shoal.get(ref, timeout=60), name)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    rng = random.Random(SEED)
    try:
        for _ in range(min(KILLS, 9)):  # at the tenth in a row a node gives up
            time.sleep(0.5 + rng.random())
            old = node.kill("objectstore")
            wait_until(lambda old=old: runs_anew(node, old), BOUND_S, "the store runs again")
        time.sleep(1)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong


@pytest.mark.timeout(90)
def test_values_on_another_nodes_disk_are_read(cluster):
    cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=ROOM)

    @shoal.remote(resources={"there": 1})
    def make(n):
        return array(n)

    refs = [make.remote(n) for n in range(24)]
    shoal.wait(refs, num_returns=24, timeout=60, fetch_local=False)
    for n, ref in enumerate(refs):
        assert shoal.get(ref, timeout=30)[0] == n


@pytest.mark.timeout(60)
def test_a_node_that_was_killed_as_a_whole_leaves_nothing_on_other_disks(cluster, tmp_path):
    disk = tmp_path / "other"
    settings = {"objectstore": {"spill_dirs": [str(disk)]}}
    node = cluster.add_node(num_cpus=1, resources={"there": 1}, object_store_memory=ROOM, system_config=settings)

    @shoal.remote(resources={"there": 1}, max_retries=0)
    def make(n):
        return array(n)

    refs = [make.remote(n) for n in range(20)]
    wait_until(lambda: list(disk.glob("*/*.spill")), BOUND_S, "something is spilled")
    cluster.remove_node(node)
    wait_until(lambda: not list(disk.iterdir()), BOUND_S, "the janitor cleans")
    del refs


@pytest.mark.timeout(100)
def test_the_example_sorts_more_than_the_memory(home):
    example = Path(__file__).parents[2] / "examples" / "larger_than_memory.py"
    done = subprocess.run([sys.executable, str(example), "--gb", "0.3", "--store-mb", "100"], check=True, capture_output=True, text=True, timeout=90)
    assert "sorted 36,000,000 numbers, 0.3 GB, through a store of 100 MB" in done.stdout


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_values_go_to_another_file_system_and_nothing_is_left_there_when_the_node(home, tmp_path, how):
    far = tmp_path / "far"
    settings = {"object_spilling_config": json.dumps({"type": "smart_open", "params": {"uri": f"file://{far}"}})}
    code = f"""
import shoal, numpy as np, os, signal
shoal.init("local", num_cpus=1, object_store_memory={ROOM}, include_dashboard=False, log_to_driver=False, _system_config={settings!r})
refs = [shoal.put(np.full({SIZE // 8}, n)) for n in range(24)]
for n, ref in enumerate(refs):
    assert shoal.get(ref)[-1] == n
print("read", flush=True)
if {how!r} == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    wait_until(lambda: list(far.glob("shoal-spill-*/*.spill")), BOUND_S, "something is spilled")
    assert process.stdout.readline() == "read\n"
    process.stdout.close()
    assert process.wait(60) == (0 if how == "ends" else -9)
    wait_until(lambda: not list(far.iterdir()), BOUND_S, "its folder goes with it")
