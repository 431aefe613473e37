"""The store without a cluster: named objects of one machine, from several processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from shoal_objectstore import Client, NameTaken, NoSuchName, StoreFull, StoreGone
from shoal_objectstore.alone import size
from shoal_objectstore.values import Packed, unpack

pytestmark = pytest.mark.timeout(60)
MIB = 1 << 20
ENV = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


class Served:
    def __init__(self, place: Path, *options: str) -> None:
        self.place = place
        read, write = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shoal_objectstore", "serve", "--dir", str(place), "--ready-fd", str(write), *options], pass_fds=[write], env=ENV
        )
        os.close(write)
        with open(read, "rb") as ready:
            self.line = ready.readline()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="store-") as place:  # short: a Unix socket's path has a limit
        yield Path(place)


@pytest.fixture
def served(short: Path) -> Iterator[Served]:
    made = Served(short / "s", "--memory", "64M", "--full-wait-s", "1")
    yield made
    if made.process.poll() is None:
        assert made.end() == 0
        assert sorted(p.name for p in made.place.iterdir()) == ["logs"], "it leaves only its log"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


def run(served: Served, code: str) -> str:
    program = f"from shoal_objectstore import Client\nimport numpy as np, os\nstore = Client({str(served.place)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", program], env=ENV, check=True, capture_output=True, text=True, timeout=30).stdout


def test_what_one_process_names_another_reads_without_a_copy(served: Served) -> None:
    run(served, "store.put('a', {'x': np.arange(1_000_000), 'y': 'text'}); store.put('raw', b'bytes')")
    with Client(served.place) as store:
        value = store.get("a")
        assert value["y"] == "text"
        assert value["x"].sum() == 499_999_500_000
        assert not value["x"].flags.writeable
        assert bytes(store.get("raw")) == b"bytes"
        assert store.names() == ["a", "raw"]
        assert store.names("r") == ["raw"]
        assert "a" in store
        assert store.stats()["sealed"] >= 0


def test_names_are_unique_until_replaced_and_views_outlive_them(served: Served) -> None:
    with Client(served.place) as store:
        store.put("n", np.ones(100_000))
        with pytest.raises(NameTaken, match=r"'n' is taken, by 8.*replace=True"):
            store.put("n", 2)
        old = store.get("n")
        store.put("n", 2, replace=True)
        assert store.get("n") == 2
        assert store.delete("n")
        assert not store.delete("n")
        with pytest.raises(NoSuchName, match="nothing is named 'n'"):
            store.get("n")
        with pytest.raises(KeyError):
            store.get("n", timeout=0.05)
    assert old.sum() == 100_000, "also after close()"


def test_a_get_may_wait_for_the_name(served: Served) -> None:
    with Client(served.place) as store:
        writer = subprocess.Popen([sys.executable, "-c", f"from shoal_objectstore import Client; Client({str(served.place)!r}).put('later', 7)"], env=ENV)
        assert store.get("later", timeout=20) == 7
        assert writer.wait(20) == 0


def test_more_than_its_memory_goes_to_disk_and_comes_back(served: Served) -> None:
    with Client(served.place) as store:
        for n in range(30):
            store.put(f"big/{n}", np.full(MIB, n))
        assert store.stats()["on_disk_bytes"] > 100 * MIB
        for n in (29, 3, 17, 0, 8):
            assert (store.get(f"big/{n}") == n).all()
        for n in range(30):
            store.delete(f"big/{n}")
        until(lambda: not list(served.place.glob("spill/*.spill")), "files go with their objects")


def test_what_exceeds_memory_and_disk_goes_to_another_file_system_and_goes_with_the_store(short: Path) -> None:
    made = Served(short / "s", "--memory", "64M", "--spill-dir", f"file://{short}/far")
    with Client(made.place) as store:
        for n in range(12):
            store.put(f"{n}", np.full(MIB, float(n)))
        assert list((short / "far").glob("shoal-spill-*/*.spill"))
        assert [store.get(f"{n}")[-1] for n in range(12)] == list(range(12))
    assert made.end() == 0
    assert not list((short / "far").iterdir())
    assert sorted(p.name for p in made.place.iterdir()) == ["logs"]


def test_what_can_never_fit_is_refused(served: Served) -> None:
    with Client(served.place) as store:
        with pytest.raises(StoreFull, match="67,108,864 bytes in all"):
            store.put("huge", bytes(100 * MIB))
        assert "huge" not in store
        store.put("small", 1)


def test_what_a_killed_process_did_not_name_goes_and_what_it_named_stays(served: Served) -> None:
    with Client(served.place) as store:
        program = (
            f"from shoal_objectstore import Client\nimport numpy as np, os\nstore = Client({str(served.place)!r})\n"
            "store.put('kept', np.ones(500_000)); store._create(5_000_000).seal(); w = store._create(100); os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", program], env=ENV, check=False, timeout=30).returncode == -signal.SIGKILL
        until(lambda: store.stats()["clients"] == 2 and store.stats()["sealed"] == 1, "what it left is taken back")
        assert store.get("kept").sum() == 500_000


def test_clients_come_and_go_in_one_process(served: Served) -> None:
    for n in range(30):
        with Client(served.place) as store:
            store.put(f"n{n}", n)
    with Client(served.place) as store:
        until(lambda: store.stats()["clients"] == 2, "places are given back")
        assert [store.get(f"n{n}") for n in range(30)] == list(range(30))


def test_a_store_that_ends_is_said_by_name(short: Path) -> None:
    with pytest.raises(StoreGone, match="no store serves at .*start one with"):
        Client(short / "none", timeout=0.1)
    served = Served(short / "s", "--memory", "64M", "--spill-dir", str(short / "disk"))
    with Client(served.place) as store:
        for n in range(12):
            store.put(f"{n}", np.full(MIB, n))
        view = store.get("11")
        assert served.end(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(StoreGone):
            store.get("0")
        assert (view == 11).all()
    again = Served(short / "s", "--memory", "64M", "--spill-dir", str(short / "disk"))
    assert b"address" in again.line
    assert len(list((short / "disk").iterdir())) == 1, "what the killed one had on disk is gone"
    other = Served(short / "s", "--memory", "64M")
    assert b"another store serves" in other.line
    assert other.process.wait(20) == 1
    with Client(again.place) as store:
        assert store.names() == []
    assert again.end() == 0
    assert not list((short / "disk").iterdir())


@pytest.mark.parametrize("value", [b"", b"x" * 1000, bytearray(b"abc"), None, {"a": [1, 2]}, "text" * 1000, np.arange(0), np.arange(10_000).reshape(100, 100)])
def test_values_come_back(value: object) -> None:
    packed = Packed(value)
    room = memoryview(bytearray(packed.nbytes))
    packed.write(room)
    found = unpack(room.toreadonly())
    if isinstance(value, np.ndarray):
        assert (found == value).all()
        assert found.shape == value.shape
    else:
        assert (bytes(found) if isinstance(found, memoryview) else found) == (bytes(value) if isinstance(value, bytearray) else value)


def test_a_damaged_value_is_refused() -> None:
    packed = Packed(np.arange(1000))
    room = bytearray(packed.nbytes)
    packed.write(memoryview(room))
    with pytest.raises(ValueError, match="past its end"):
        unpack(memoryview(room)[:100])


def test_sizes_have_units() -> None:
    assert [size(t) for t in ("7", "2k", "500M", "2G")] == [7, 2048, 500 * MIB, 2048 * MIB]
    for wrong in ("", "G", "1.5G", "2X"):
        with pytest.raises(Exception, match="bytes are wanted"):
            size(wrong)


def test_the_readmes_stand_alone_example_runs(short: Path) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    [serve] = re.findall(r"```sh\n(python -m shoal_objectstore serve .*?)\n```", readme, re.S)
    [program] = re.findall(r"```python\n(from shoal_objectstore import Client.*?)```", readme, re.S)
    options = serve.split()[serve.split().index("--memory") :]
    served = Served(short / "s", *[o for o in options if o != "&"])
    done = subprocess.run(
        [sys.executable, "-c", program.replace("/tmp/my-store", str(served.place))], env=ENV, check=True, capture_output=True, text=True, timeout=30
    )
    assert "10000000.0" in done.stdout
    assert served.end() == 0
