"""What every back end must do. A back end of one's own is held to it by subclassing `BackendConformance` in a test module:

    class TestMine(BackendConformance):
        def again(self): ...

pytest collects the tests; each starts on empty storage.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

from .backend import Backend, Batch, StorageError

CLUSTER = b"c" * 16


class BackendConformance(ABC):
    exclusive = False  # True: a second process cannot open it at all, instead of fencing the first

    @abstractmethod
    def again(self) -> Backend:
        """A new, unopened back end on the storage of this test."""

    def test_the_first_opening_is_epoch_one_with_the_cluster_id_given(self) -> None:
        backend = self.again()
        opened = backend.open(CLUSTER)
        backend.close()
        assert (opened.epoch, opened.cluster_id, opened.records) == (1, CLUSTER, {})

    def test_each_opening_is_a_new_epoch_of_the_same_cluster(self) -> None:
        for epoch in (1, 2, 3):
            backend = self.again()
            opened = backend.open(os.urandom(16) if epoch > 1 else CLUSTER)
            backend.close()
            assert (opened.epoch, opened.cluster_id) == (epoch, CLUSTER)

    def test_records_are_there_again_and_deleted_ones_are_not(self) -> None:
        self._write({("a", b"1"): b"one", ("a", b"2"): b"two", ("b", b"1"): b"other"})
        self._write({("a", b"1"): b"changed", ("a", b"2"): None, ("b", b"never was"): None})
        assert self._read() == {"a": {b"1": b"changed"}, "b": {b"1": b"other"}}

    def test_keys_and_records_may_be_any_bytes(self) -> None:
        batch: Batch = {("t", bytes([n, 0, 255 - n])): bytes(range(n, 256)) for n in range(256)}
        batch["t", b"empty"] = b""
        batch["t", b"large"] = os.urandom(1 << 20)
        self._write(batch)
        assert self._read() == {"t": {key: record for (_, key), record in batch.items()}}

    def test_a_large_batch_of_puts_and_deletes_is_one(self) -> None:
        self._write({("t", n.to_bytes(4, "big")): b"old" for n in range(3_000)})
        mixed: Batch = {("t", n.to_bytes(4, "big")): (None if n % 2 else b"new") for n in range(3_000)}
        self._write(mixed)
        assert self._read() == {"t": {n.to_bytes(4, "big"): b"new" for n in range(0, 3_000, 2)}}

    def test_an_older_epoch_can_write_no_more(self) -> None:
        first = self.again()
        first.open(CLUSTER)
        first.apply({("t", b"k"): b"first"})
        second = self.again()
        try:
            if self.exclusive:
                assert _refuses(lambda: second.open(CLUSTER))
                first.apply({("t", b"k"): b"second"})
                first.close()
                second.open(CLUSTER)
            else:
                second.open(CLUSTER)
                second.apply({("t", b"k"): b"second"})
                assert _refuses(lambda: first.apply({("t", b"k"): b"stale"}))
        finally:
            first.close()
            second.close()
        assert self._read() == {"t": {b"k": b"second"}}

    def test_an_expected_cluster_is_found_and_another_or_none_is_refused_and_left_alone(self) -> None:
        assert _refuses(lambda: self.again().open(CLUSTER, expected=CLUSTER))
        self._write({("t", b"k"): b"v"})
        assert _refuses(lambda: self.again().open(CLUSTER, expected=b"o" * 16))
        backend = self.again()
        opened = backend.open(b"f" * 16, expected=CLUSTER)
        backend.close()
        assert (opened.epoch, opened.cluster_id, opened.records) == (2, CLUSTER, {"t": [(b"k", b"v")]})

    def test_closing_twice_is_no_error(self) -> None:
        backend = self.again()
        backend.open(CLUSTER)
        backend.close()
        backend.close()

    def _write(self, batch: Batch) -> None:
        backend = self.again()
        backend.open(CLUSTER)
        backend.apply(batch)
        backend.close()

    def _read(self) -> dict[str, dict[bytes, bytes]]:
        backend = self.again()
        opened = backend.open(CLUSTER)
        backend.close()
        return {table: dict(rows) for table, rows in opened.records.items() if rows}


def _refuses(action: object) -> bool:
    try:
        action()  # type: ignore[operator]
    except StorageError:
        return True
    return False
