"""The processes in which the clients of remote file systems run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from shoal_objectstore.courier import Courier, CourierFailed, Missing
from store_node import MIB

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("no_pauses")]


def test_parts_are_written_read_and_removed_by_one_process_that_is_used_again(tmp_path: Path) -> None:
    courier = Courier(f"file://{tmp_path}/far")
    parts = [os.urandom(5 * MIB + 7), b"", os.urandom(MIB)]
    stored = courier.write("a/one", [memoryview(part) for part in parts])
    assert sum(stored) == (tmp_path / "far/a/one").stat().st_size < sum(map(len, parts)) + 100, "what cannot be compressed is not"
    offset = 0
    for part, nbytes in zip(parts, stored, strict=True):
        into = bytearray(len(part))
        courier.read("a/one", offset, nbytes, memoryview(into))
        assert into == part
        offset += nbytes
    into = bytearray(MIB)
    with pytest.raises(Missing, match="bytes too early"):
        courier.read("a/one", offset - 10, 10, memoryview(into))
    with pytest.raises(Missing, match="FileNotFoundError"):
        courier.read("a/two", 0, 10, memoryview(into))
    courier.remove(["a/one", "a/never"])
    assert not (tmp_path / "far/a/one").exists()
    [lane] = courier._idle
    courier.end_idle(3600)
    assert courier._idle == [lane]
    courier.end_idle(0.0)
    assert lane.process.returncode == -signal.SIGKILL
    courier.close()
    with pytest.raises(CourierFailed, match="the object store ends"):
        courier.remove(["a"])


def test_what_can_be_compressed_is_block_by_block(tmp_path: Path) -> None:
    courier = Courier(f"file://{tmp_path}")
    block = 4 * MIB
    text, noise = b"the same again; " * (block // 16), os.urandom(block)
    late = noise[: 64 << 10] + text[64 << 10 :]  # the sample says no
    early = text[: 64 << 10] + noise[64 << 10 :]  # the sample says yes, and the block does not become small
    whole = text + noise + late + early + b"end"
    [stored] = courier.write("x", [memoryview(whole)])
    assert 3 * block < stored < 3 * block + block // 50
    into = bytearray(len(whole))
    courier.read("x", 0, stored, memoryview(into))
    assert into == whole
    courier.close()


def test_one_that_hangs_is_killed_and_the_next_one_works(tmp_path: Path) -> None:
    courier = Courier(f"file://{tmp_path}")
    [stored] = courier.write("well", [memoryview(b"well")])
    os.mkfifo(tmp_path / "hangs")  # whoever opens it waits for a writer
    courier._stall_s = 0.5
    with pytest.raises(CourierFailed, match=r"it was silent for 0\.5 s"):
        courier.read("hangs", 0, 13, memoryview(bytearray(4)))
    assert not courier._idle and not courier._busy
    courier._stall_s = 30.0
    into = bytearray(4)
    courier.read("well", 0, stored, memoryview(into))
    assert into == b"well"
    courier.close()


def test_one_that_is_killed_is_an_error_that_may_be_tried_again(tmp_path: Path) -> None:
    courier = Courier(f"file://{tmp_path}")
    courier.write("one", [memoryview(b"one")])
    courier._idle[0].process.kill()
    courier._idle[0].process.wait()
    with pytest.raises(CourierFailed, match="its process has ended"):
        courier.remove(["one"])
    courier.remove(["one"])
    courier.close()


def test_what_is_wrong_with_a_uri_is_told(tmp_path: Path) -> None:
    for uri, why in (("nosuchscheme://x", "nosuchscheme"), ("s3://bucket/x?colour=red", "colour")):
        courier = Courier(uri)
        with pytest.raises(CourierFailed, match=why):
            courier.write("x", [memoryview(b"x")])
        courier.close()
