"""What is written to a remote file system, read there and removed, step by step, and what a successor finds after each."""

from __future__ import annotations

from pathlib import Path

import pytest
from far_place import FakeCourier, read, remote, source
from shoal_objectstore.journal import Damaged, OutOfReach
from shoal_objectstore.remote import ATTEMPTS

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("no_pauses")]


def test_several_objects_share_a_file_that_goes_with_the_last(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = place.write([source(1, b"one"), source(2, b""), source(3, b"three")])
    assert list(there.files.values()) == [b"onethree"]
    assert [read(place, r) for r in records] == [b"one", b"", b"three"]
    place.drop(records[:2])
    assert not place.remove_unwanted()
    assert (len(there.files), place.files, place.file_bytes) == (1, 1, 8)
    place.drop(records[2:])
    assert (place.files, place.unwanted) == (0, 1)
    assert not place.remove_unwanted()
    assert (there.files, place.unwanted) == ({}, 0)
    place.close()


def test_a_successor_finds_what_was_written_and_removes_what_was_begun(tmp_path: Path) -> None:
    there = FakeCourier()
    first = remote(tmp_path, there)
    kept, freed = first.write([source(1, b"kept")]), first.write([source(2, b"freed")])
    first.evicted(kept)
    first.drop(freed)
    there.fail = ATTEMPTS
    with pytest.raises(OutOfReach, match=r"s3://bucket/folder/shoal-spill-x: it is down"):
        first.write([source(3, b"half")])
    assert len(there.files) == 3
    first.close()
    for _ in range(2):
        second = remote(tmp_path, there)
        [record] = second.recover()
        assert (record.location, record.evicted, read(second, record)) == ((1, 1), True, b"kept")
        assert second.remove_unwanted() is False
        assert list(there.files.values()) == [b"kept"]
        second.close()
    third = remote(tmp_path, there)
    third.recover()
    [again] = third.write([source(4, b"new")])
    assert again.file not in {record.file, freed[0].file}, "a number is never given again"
    third.close()


def test_a_write_that_fails_is_tried_again_and_then_left_alone_for_a_while(tmp_path: Path) -> None:
    there = FakeCourier(fail=ATTEMPTS - 1)
    place = remote(tmp_path, there)
    [record] = place.write([source(1, b"one")])
    assert (there.asked, read(place, record)) == (ATTEMPTS, b"one")
    there.fail = ATTEMPTS
    with pytest.raises(OutOfReach):
        place.write([source(2, b"two")])
    asked = there.asked
    with pytest.raises(OutOfReach, match=r"it is down \(\d s ago\)"):
        place.write([source(2, b"two")])
    assert there.asked == asked, "nobody waits for what has just failed"
    place.shunned_until = 0.0
    assert read(place, place.write([source(2, b"two")])[0]) == b"two"
    place.close()


def test_a_read_that_fails_is_of_the_moment_and_one_that_is_wrong_is_damage(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    [record] = place.write([source(1, b"one")])
    there.fail = ATTEMPTS
    with pytest.raises(OutOfReach, match="cannot be read now: it is down; it stays there"):
        read(place, record)
    there.fail = ATTEMPTS - 1
    assert read(place, record) == b"one"
    [path] = there.files
    there.files[path] = b"eno"
    with pytest.raises(Damaged, match="CRC-32C"):
        read(place, record)
    del there.files[path]
    with pytest.raises(Damaged, match="is lost: FileNotFoundError"):
        read(place, record)
    place.close()


def test_removing_is_tried_again_with_pauses_and_holds_up_nobody(tmp_path: Path) -> None:
    there = FakeCourier()
    place = remote(tmp_path, there)
    records = [r for n in range(3) for r in place.write([source(n, b"x")])]
    there.fail = 1
    place.drop(records)
    assert not place.remove_unwanted()
    assert len(there.files) == place.unwanted == 3
    asked = there.asked
    assert not place.remove_unwanted()
    assert there.asked == asked, "its pause is not over"
    place._remove_at = 0.0
    assert not place.remove_unwanted()
    assert (there.files, place.unwanted) == ({}, 0)
    place.close()


def test_a_long_journal_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_objectstore.journal.COMPACT_ENTRIES", 40)
    there = FakeCourier()
    place = remote(tmp_path, there)
    [kept] = place.write([source(1000, b"kept")])
    kept.evicted = True
    place.evicted([kept])
    for n in range(40):
        place.drop(place.write([source(n, b"x")]))
        place.remove_unwanted()
    place.close()
    assert (tmp_path / "spill" / "remote-0.journal").stat().st_size < 80 * 60
    successor = remote(tmp_path, there)
    [record] = successor.recover()
    assert (record.evicted, read(successor, record), successor.unwanted, len(there.files)) == (True, b"kept", 0, 1)
    successor.close()
