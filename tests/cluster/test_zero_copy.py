"""Large values are read where they lie, nobody can change them, and forked readers of them harm nothing, whoever is killed."""

from __future__ import annotations

import gc
import os
import pickle
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
    if isinstance(value, pyarrow.Buffer):
        return value.address, value.is_mutable
    if isinstance(value, memoryview):
        return address(np.frombuffer(value, np.uint8))
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


@pytest.mark.timeout(120)
def test_what_the_collector_finds_in_a_cycle_gives_its_pin_back(cluster):
    ref = shoal.put(Buffered(bytearray(8 * N)))
    value = shoal.get(ref)
    value.itself = value
    assert address(value)[1] is False
    del value, ref
    gc.collect()
    wait_until(lambda: stats().sealed_bytes == stats().doomed_bytes == 0, BOUND_S, "the object goes, and nobody pins it")


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


def mappings() -> int:
    """Private, writable ones of the arena."""
    with open("/proc/self/maps") as maps:
        return sum("memfd:shoal-arena" in line and line.split()[1] == "rw-p" for line in maps)


TENSORS = {
    "plain": lambda: torch.arange(2 * N), "of columns": lambda: torch.arange(4.0 * N).reshape(1000, -1).t(), "strided": lambda: torch.arange(8 * N)[::2],
    "a part of a storage": lambda: torch.arange(4 * N)[N:-N], "bfloat16": lambda: torch.ones(4 * N, dtype=torch.bfloat16),
    "with a gradient": lambda: torch.ones(4 * N, requires_grad=True),
}  # fmt: skip


@shoal.remote
def add_one(tensor):
    with torch.no_grad():
        tensor += 1
        return float(tensor.double().sum()), mappings()


@pytest.mark.timeout(120)
def test_a_large_tensor_is_a_view_whose_writes_are_its_readers_own(cluster):
    for name, make in TENSORS.items():
        made = make()
        ref = shoal.put(made)
        one, two = shoal.get(ref), shoal.get(ref)
        assert mappings() == 2, name
        for back in (one, two):
            assert torch.equal(back, made), name
            assert (back.dtype, back.requires_grad) == (made.dtype, made.requires_grad), name
        with torch.no_grad():
            one.view(-1)[5:100] = 3
            one.view(-1)[-1] = 4
        assert torch.equal(two, made), f"{name}: nor in another view in the same process"
        assert torch.equal(shoal.get(ref), made), name
        assert shoal.get(add_one.remote(ref)) == (made.detach().double().sum().item() + made.numel(), 1), name
        assert torch.equal(shoal.get(ref), made), name
        kept = one.detach().view(-1)[5:]
        del one, two, back
        gc.collect()
        assert mappings() == 1, f"{name}: a view of it keeps it"
        assert kept[0] == 3
        del kept
        gc.collect()
        assert mappings() == 0, name


@pytest.mark.timeout(120)
def test_what_a_tensor_shows_stays_while_it_lives_though_the_object_is_freed_and_others_are_put(cluster):
    wait_until(lambda: stats().sealed_bytes == stats().doomed_bytes == 0, BOUND_S, "an empty store to begin with")
    made = torch.arange(N)
    tensor = shoal.get(shoal.put(made))
    wait_until(lambda: stats().doomed_bytes > 8 * N, BOUND_S, "it is freed, and pinned")
    for n in range(20):
        del n
        shoal.put(np.full(N, -1))
    assert torch.equal(tensor, made)
    child = os.fork()
    if not child:
        # Few numbers: for many torch wants its threads, which a forked child has not.
        signal.alarm(20)
        tensor[:100] += 1
        os._exit(0 if tensor[:100].tolist() == list(range(1, 101)) and tensor[-1] == N - 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(tensor, made)
    del tensor
    gc.collect()
    wait_until(lambda: stats().doomed_bytes == 0, BOUND_S, "the object goes with its last view")
    assert faults() == []


@pytest.mark.timeout(120)
def test_bytes_are_a_copy_and_views_of_bytes_are_not(cluster):
    ref = shoal.put([pickle.PickleBuffer(bytes(8 * N)), bytearray(b"ab"), pyarrow.py_buffer(bytes(8 * N))])
    one, two = shoal.get(ref), shoal.get(ref)
    for a, b in ((memoryview(one[0]), memoryview(two[0])), (one[2], two[2])):
        assert address(a) == address(b), type(a)
        assert address(a)[1] is False
    assert type(one[1]) is bytearray
    ref = shoal.put(bytes(8 * N))
    assert type(shoal.get(ref)) is bytes
    structured = np.zeros(N, dtype=[("a", "i4"), ("b", "f8")])
    ref = shoal.put(structured)
    assert address(shoal.get(ref)) == address(shoal.get(ref))
    objects = np.array([1, "two", None] * 100, dtype=object)
    assert list(shoal.get(shoal.put(objects))) == list(objects)
    sliced = np.arange(4 * N)[::2]
    assert np.array_equal(shoal.get(shoal.put(sliced)), sliced)
    frame = pandas.DataFrame({"a": pandas.array(range(N), dtype="int64[pyarrow]"), "b": np.arange(N)})
    one, two = shoal.get(ref := shoal.put(frame)), shoal.get(ref)
    column = one["a"].array._pa_array.chunk(0), two["a"].array._pa_array.chunk(0)
    assert address(column[0]) == address(column[1])
    assert address(one[["b"]].rename(columns={"b": "a"})) == address(two[["b"]].rename(columns={"b": "a"}))


DRIVER = """
import os, signal, sys, warnings
import numpy as np, shoal, torch
from torch.utils.data import DataLoader, Dataset
warnings.simplefilter("ignore")

class Rows(Dataset):
    def __init__(self, array, tensor): self.array, self.tensor = array, tensor
    def __len__(self): return len(self.array)
    def __getitem__(self, i):
        self.tensor[i] += 1  # in the loader's own copy of that page
        return torch.tensor(self.array[i]) + self.tensor[i] - 1

shoal.init(address=sys.argv[1], log_to_driver=False)
array = shoal.get(shoal.put(np.arange(400_000.0).reshape(4000, 100)))
tensor = shoal.get(shoal.put(torch.zeros(4000, 100, dtype=torch.float64)))
loader = iter(DataLoader(Rows(array, tensor), batch_size=50, num_workers=2, multiprocessing_context="fork"))
total = sum(float(next(loader).sum()) for _ in range(40))
assert total == float(array[:2000].sum()), total
print("READY", *[w.pid for w in loader._workers], flush=True)
if sys.argv[2] == "killed":
    signal.pause()
rest = sum(float(batch.sum()) for batch in loader)
assert total + rest == float(array.sum())
assert not tensor.any(), "what the loaders wrote is theirs"
del loader, array, tensor
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
