"""What lives in remote files that are mostly dead is moved, and their space returns."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from far_place import FakeCourier, Far, read, remote, settle, source, value
from shoal_objectstore.journal import Damaged
from shoal_objectstore.remote import ATTEMPTS
from store_node import MIB, Client, nodes, until

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("no_pauses")]
Location = tuple[int, int]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little it saves, and however lately an object died."""
    monkeypatch.setattr("shoal_objectstore.remote.WASTE_BYTES", 1)
    monkeypatch.setattr("shoal_objectstore.remote.SETTLED_S", 0.0)


@pytest.mark.usefixtures("at_once")
def test_what_lives_in_a_file_that_is_mostly_dead_moves_and_the_space_returns(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    first = place.write([source(n, bytes([n]) * 100) for n in range(10)])
    second = place.write([source(n, bytes([n]) * 100) for n in range(10, 20)])
    place.evicted([first[7]])
    first[7].evicted = True
    place.drop(first[:5])
    settle(place)
    assert place.moved_bytes == 0, "half of it lives"
    place.drop([first[5], *second[:8]])
    settle(place)
    assert [len(data) for data in there.files.values()] == [600], "both rests share a file"
    assert (place.files, place.file_bytes, place.unwanted, place.moved_bytes) == (1, 600, 0, 600)
    kept = [*first[6:], *second[8:]]
    assert [read(place, r) for r in kept] == [bytes([r.slot]) * 100 for r in kept]
    place.close()
    successor = remote(tmp_path, there)
    found = successor.recover()
    assert {r.location: (read(successor, r), r.evicted) for r in found} == {(r.slot, 1): (bytes([r.slot]) * 100, r.slot == 7) for r in kept}
    successor.drop(found)
    settle(successor)
    assert (there.files, successor.unwanted) == ({}, 0)
    successor.close()


def test_a_file_that_still_dies_or_wastes_little_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = remote(tmp_path, FakeCourier())
    place.drop(place.write([source(n, bytes(100)) for n in range(10)])[1:])
    monkeypatch.setattr("shoal_objectstore.remote.WASTE_BYTES", 900)
    assert not place.move_living(), "it died a moment ago"
    monkeypatch.setattr("shoal_objectstore.remote.SETTLED_S", 0.0)
    monkeypatch.setattr("shoal_objectstore.remote.WASTE_BYTES", 901)
    assert not place.move_living()
    monkeypatch.setattr("shoal_objectstore.remote.WASTE_BYTES", 900)
    assert place.move_living()
    place.close()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("step", ["read", "write"])
def test_when_moving_fails_everything_stays_where_it_was_and_is_moved_later(tmp_path: Path, step: str) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = place.write([source(n, bytes([n]) * 100) for n in range(5)])
    place.drop(records[:4])
    plain = there.read
    if step == "write":
        there.read = lambda path, offset, stored, into: into.__setitem__(slice(None), there.files[path][offset : offset + stored])  # type: ignore[method-assign]
    there.fail = ATTEMPTS
    assert not place.move_living()
    there.read = plain  # type: ignore[method-assign]
    assert (there.fail, place.moved_bytes, read(place, records[4])) == (0, 0, bytes([4]) * 100)
    place.close()
    successor = remote(tmp_path, there)
    [found] = successor.recover()
    assert read(successor, found) == bytes([4]) * 100
    settle(successor)
    assert list(there.files.values()) == [bytes([4]) * 100], "what was begun is removed"
    assert read(successor, found) == bytes([4]) * 100
    successor.close()


@pytest.mark.usefixtures("at_once")
def test_what_is_freed_while_it_moves_stays_freed(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = place.write([source(n, bytes([n]) * 100) for n in range(9)])
    place.drop(records[3:])
    write = there.write

    def and_meanwhile(path: str, parts: Sequence[memoryview]) -> list[int]:
        place.drop(records[:freed])
        return write(path, parts)

    freed = 2
    there.write = and_meanwhile  # type: ignore[method-assign]
    assert place.move_living()
    there.write = write  # type: ignore[method-assign]
    assert (read(place, records[2]), place.files, place.file_bytes) == (bytes([2]) * 100, 1, 300)
    place.close()
    place = remote(tmp_path, there)
    [last] = place.recover()
    assert last.location == (2, 1)
    settle(place)
    assert read(place, last) == bytes([2]) * 100
    # All of it.
    more = place.write([source(n, bytes(100)) for n in range(20, 29)])
    place.drop(more[2:])
    records, freed = more, 2
    there.write = and_meanwhile  # type: ignore[method-assign]
    assert place.move_living()
    there.write = write  # type: ignore[method-assign]
    settle(place)
    assert (place.files, len(there.files), place.unwanted) == (1, 1, 0)
    place.close()


@pytest.mark.usefixtures("at_once")
def test_a_reader_of_what_is_moved_meanwhile_reads_it_where_it_is_now(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = place.write([source(n, bytes([n]) * 100) for n in range(5)])
    place.drop(records[:4])
    plain = there.read

    def late(path: str, offset: int, stored: int, into: memoryview) -> None:
        there.read = plain  # type: ignore[method-assign]
        settle(place)
        assert path not in there.files
        plain(path, offset, stored, into)

    there.read = late  # type: ignore[method-assign]
    assert read(place, records[4]) == bytes([4]) * 100
    place.close()


@pytest.mark.usefixtures("at_once")
def test_what_cannot_be_read_is_left_where_it_is(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = place.write([source(n, bytes([n]) * 100) for n in range(5)])
    place.drop(records[:4])
    there.files.clear()
    assert not place.move_living()
    asked = there.asked
    assert not place.move_living()
    assert there.asked == asked, "nor asked for again and again"
    with pytest.raises(Damaged, match="is lost"):
        read(place, records[4])
    place.close()


@pytest.mark.usefixtures("at_once")
def test_a_store_gives_the_space_of_dead_objects_back_while_their_neighbours_live(tmp_path: Path, near: Far) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB, spill_dirs=(near.uri,)) as [node]:
            one = await asyncio.to_thread(Client, node, 1)

            def fill() -> list[tuple[Location, int]]:
                return [(one.put(data := value(n, 100_000)), zlib.crc32(data)) for n in range(600)]

            put = await asyncio.to_thread(fill)
            kept = put[::10]

            def free() -> None:
                for location, _ in put:
                    if location not in dict(kept):
                        one.free(node, location)

            await asyncio.to_thread(free)
            await until(lambda: node.store.figures()["remote_moved_bytes"] > 0, "what lives is moved")
            await until(lambda: node.store.figures()["remote_file_bytes"] <= 2 * 60 * 100_000, "the space of the dead returns")

            def look() -> None:
                for location, checksum in kept:
                    assert zlib.crc32(one.read(node, location, 100_000)) == checksum
                    one.free(node, location)

            await asyncio.to_thread(look)
            await until(lambda: not near.names(), "nothing is left")
            await asyncio.to_thread(one.close)

    asyncio.run(main())
