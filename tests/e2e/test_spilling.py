"""Values larger than the store's memory: they go to disk and come back, without the program's help."""

import glob
import random
import time
from pathlib import Path

import numpy as np
import pytest
import shoal
from shoal.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError

MIB = 1 << 20
ROOM = 96 * MIB
SIZE = 8 * MIB

pytestmark = pytest.mark.timeout(100)


@pytest.fixture(scope="module", autouse=True)
def small_store(tmp_path_factory):
    place = tmp_path_factory.mktemp("spill")
    shoal.init(
        "local", num_cpus=2, object_store_memory=ROOM, log_to_driver=False, include_dashboard=False, object_spilling_directory=str(place),
        _system_config={"objectstore": {"full_wait_s": 2.0}},
    )  # fmt: skip
    yield place
    shoal.shutdown()
    assert not list(place.iterdir()), "what the node kept elsewhere goes with it"


def files(place: Path) -> list[str]:
    return glob.glob(f"{place}/shoal-spill-*/*.spill")


def until(condition, what):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def array(n):
    return np.full(SIZE // 8, n)


def test_four_times_the_memory_is_put_made_and_read_in_another_order(small_store):
    @shoal.remote
    def make(n):
        return array(n)

    @shoal.remote
    def total(x, nested):
        return int(x.sum()) + int(shoal.get(nested[0])[0])

    refs = [shoal.put(array(n)) for n in range(24)] + [make.remote(n) for n in range(24, 48)]
    order = list(range(48))
    random.Random(1).shuffle(order)
    for n in order:
        value = shoal.get(refs[n])
        assert value[0] == n
        assert (value == n).all()
        del value
    assert files(small_store)
    args = [(refs[n], refs[(n + 7) % 48]) for n in order[:20]]
    assert shoal.get([total.remote(a, [b]) for a, b in args], timeout=60) == [n * SIZE // 8 + (n + 7) % 48 for n in order[:20]]
    del refs, args
    until(lambda: not files(small_store), "files go with their objects")


def test_values_that_together_exceed_the_memory_are_refused_and_each_can_still_be_read():
    refs = [shoal.put(array(n)) for n in range(20)]
    with pytest.raises(ObjectStoreFullError, match="no room for an object"):
        shoal.get(refs)
    for n, ref in enumerate(refs):
        assert shoal.get(ref)[0] == n
    assert len(shoal.wait(refs, num_returns=20, timeout=30)[0]) == 20


def test_an_event_loop_goes_on_while_values_that_it_awaits_come_from_disk():
    @shoal.remote(num_cpus=0)
    class Reader:
        async def read(self, refs):
            return [int((await ref)[0]) for ref in refs]

    refs = [shoal.put(array(n)) for n in range(24)]
    readers = [Reader.remote() for _ in range(2)]
    assert shoal.get([r.read.remote(refs) for r in readers], timeout=60) == [list(range(24))] * 2


def test_a_view_keeps_its_value_in_memory_while_others_go(small_store):
    view = shoal.get(shoal.put(array(7)))
    refs = [shoal.put(array(n)) for n in range(20)]
    assert (view == 7).all()
    assert shoal.get(refs[0])[0] == 0
    del refs
    until(lambda: not files(small_store), "files go with their objects")
    assert (view == 7).all()


def test_a_spilled_value_that_was_harmed_is_lost_by_name_and_others_are_well(small_store):
    refs = [shoal.put(array(n)) for n in range(24)]
    harmed = sorted(files(small_store))[0]
    with open(harmed, "r+b") as file:
        file.seek(1 * MIB)
        file.write(b"\xff")
    told = [str(error) for ref in refs if (error := harm(ref)) is not None]
    assert len(told) == 1
    assert harmed in told[0]
    assert "CRC-32" in told[0]


def harm(ref):
    try:
        shoal.get(ref)
    except ObjectLostError as error:
        return error
    return None


def test_a_disk_that_takes_nothing_is_out_of_disk_at_once_and_nothing_is_lost(small_store):
    [disk] = small_store.glob("shoal-spill-*")
    refs = [shoal.put(array(n)) for n in range(4)]
    disk.rename(small_store / "away")
    try:
        with pytest.raises(OutOfDiskError, match=r"put\(\): no room .* could not be spilled to disk: .*shoal-spill-.*: No such file or directory.*--spill-dir"):
            while True:
                began = time.monotonic()
                refs.append(shoal.put(array(len(refs))))
        assert time.monotonic() - began < 2
    finally:
        (small_store / "away").rename(disk)
    for n, ref in enumerate(refs):
        assert shoal.get(ref)[0] == n
