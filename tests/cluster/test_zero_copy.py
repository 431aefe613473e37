"""Large values are read where they lie, nobody can change them, and forked readers of them harm nothing, whoever is killed."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys

import numpy as np
import pandas
import pyarrow
import pytest
import shoal
import torch
from shoal import _runtime
from shoal.exceptions import WorkerCrashedError
from shoal.testing import wait_until
from shoal_objectstore.v1 import objectstore_pb2

BOUND_S = 40.0
N = 200_000


class Buffered:
    """Any class with an out-of-band buffer."""

    def __init__(self, data):
        self.data = data

    def __reduce_ex__(self, protocol):
        import pickle

        return Buffered, (pickle.PickleBuffer(self.data),)


def address(value) -> tuple[int, bool]:
    """Of its largest buffer, and whether that can be written."""
    if isinstance(value, np.ndarray):
        return value.__array_interface__["data"][0], value.flags.writeable
    if isinstance(value, pandas.DataFrame):
        return address(value["a"].to_numpy())
    if isinstance(value, pyarrow.Table):
        return address(value.column("a").chunk(0))
    if isinstance(value, pyarrow.RecordBatch):
        return address(value.column("a"))
    if isinstance(value, pyarrow.Array):
        buffer = value.buffers()[1]
        return buffer.address, buffer.is_mutable
    return address(np.frombuffer(value.data, np.uint8))


VALUES = {
    "array": lambda: np.arange(N), "array of columns": lambda: np.asfortranarray(np.ones((1000, 200))), "pandas": lambda: pandas.DataFrame({"a": np.arange(N)}),
    "arrow table": lambda: pyarrow.table({"a": np.arange(N)}), "arrow batch": lambda: pyarrow.record_batch({"a": np.arange(N)}),
    "own class": lambda: Buffered(bytearray(8 * N)),
}  # fmt: skip


@shoal.remote
def look(value):
    return address(value)[1]


@pytest.mark.timeout(120)
def test_all_readers_see_the_same_memory_and_none_can_write_to_it(cluster):
    for name, make in VALUES.items():
        ref = shoal.put(make())
        one, two = shoal.get(ref), shoal.get(ref)
        assert address(one) == address(two), name
        assert address(one)[1] is False, name
        assert shoal.get(look.remote(ref)) is False, name


@shoal.remote(max_retries=0)
def write_through(array):
    view = torch.from_numpy(array)  # torch has no read-only tensors, and warns
    view[0] = 7
    return "nobody noticed"


@pytest.mark.timeout(120)
def test_a_write_through_a_view_of_torch_is_caught_and_a_tensor_is_its_readers_own(cluster):
    ref = shoal.put(np.zeros(N))
    with pytest.raises(WorkerCrashedError, match="SIGSEGV"):
        shoal.get(write_through.remote(ref))
    assert not shoal.get(ref).any()
    tensor = shoal.put(torch.zeros(N))
    mine = shoal.get(tensor)
    mine += 1
    assert not shoal.get(tensor).any()


DRIVER = """
import os, signal, sys, warnings
import numpy as np, shoal, torch
from torch.utils.data import DataLoader, Dataset
warnings.simplefilter("ignore")

class Rows(Dataset):
    def __init__(self, array): self.array = array
    def __len__(self): return len(self.array)
    def __getitem__(self, i): return torch.tensor(self.array[i])

shoal.init(address=sys.argv[1], log_to_driver=False)
array = shoal.get(shoal.put(np.arange(400_000.0).reshape(4000, 100)))
loader = iter(DataLoader(Rows(array), batch_size=50, num_workers=2, multiprocessing_context="fork"))
total = sum(float(next(loader).sum()) for _ in range(40))
assert total == float(array[:2000].sum()), total
print("READY", *[w.pid for w in loader._workers], flush=True)
if sys.argv[2] == "killed":
    signal.pause()
rest = sum(float(batch.sum()) for batch in loader)
assert total + rest == float(array.sum())
del loader, array
shoal.shutdown()
print("ended", flush=True)
"""


def stats():
    return objectstore_pb2.StatsReply.FromString(_runtime.state.engine.call("store/Stats", objectstore_pb2.Empty().SerializeToString(), 10.0))


def faults():
    return list(objectstore_pb2.CheckReply.FromString(_runtime.state.engine.call("store/Check", objectstore_pb2.Empty().SerializeToString(), 10.0)).faults)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(150)
@pytest.mark.parametrize("how", ["ends", "killed"])
def test_forked_loaders_read_a_shared_array_and_leave_nothing_when_their_parent(cluster, how):
    gc.collect()
    wait_until(lambda: stats().sealed_bytes == 0, BOUND_S, "an empty store to begin with")
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, cluster.address, how], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    loaders = [int(pid) for pid in driver.stdout.readline().split()[1:]]
    assert len(loaders) == 2
    if how == "killed":
        driver.send_signal(signal.SIGKILL)
    else:
        assert driver.stdout.readline() == "ended\n"
    driver.stdout.close()
    assert driver.wait(BOUND_S) == (-signal.SIGKILL if how == "killed" else 0)
    wait_until(lambda: not any(map(lives, loaders)), BOUND_S, "the loaders see that they are alone")
    wait_until(lambda: stats().sealed_bytes == stats().doomed_bytes == 0, BOUND_S, "the array goes, and nobody pins it")
    assert faults() == []
    ref = shoal.put(np.ones(N))
    assert shoal.get(ref).sum() == N
