"""Objects between two stores over loopback, beside a plain socket and memcpy: python benchmarks/transfer.py [--size MIB]

Both stores run here, with the transfer code of the service and without its raylets.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from arena import create, put
from shoal_base.wire import Fetched, Free, Pull, Pulled
from shoal_objectstore import Arena, Store, create_arena
from shoal_objectstore.peer import Bytes, Peers, Serving, Wanted
from shoal_objectstore.pulls import Origin, Place
from shoal_objectstore.transfer import TOGETHER

MIB = 1 << 20


class Objects:
    def __init__(self, store: Store, arena: Arena) -> None:
        self.store, self.arena = store, arena

    def for_peer(self, message: Free) -> None:
        for slot in message.slots:
            self.arena.free(*slot)

    def soon(self, objects: Sequence[tuple[bytes, Origin]]) -> None:
        pass

    def bring(self, pull: Pull) -> Pulled:
        raise NotImplementedError

    @contextlib.contextmanager
    def pinned(self, object_id: bytes, origin: Origin) -> Iterator[Bytes | Fetched]:
        pin = self.arena.get(origin.slot, origin.generation)
        offset, size = self.store.location(origin.slot, origin.generation)
        yield Bytes(self.store.fd, offset, size)
        del pin

    def turn(self, origin: Origin, size_bytes: int, reader: bytes, address: str) -> None:
        return None

    def sent(self, origin: Origin, size_bytes: int, reader: bytes, part_bytes: int, last: bool) -> None:
        pass


def plain_socket(nbytes: int) -> float:
    a, b = socket.create_server(("127.0.0.1", 0)), socket.socket()
    b.connect(a.getsockname())
    c, _ = a.accept()
    data, into = bytearray(nbytes), memoryview(bytearray(nbytes))
    start = time.perf_counter()
    thread = threading.Thread(target=b.sendall, args=(data,))
    thread.start()
    at = 0
    while at < nbytes:
        at += c.recv_into(into[at:])
    thread.join()
    for s in (a, b, c):
        s.close()
    return nbytes / (time.perf_counter() - start) / 1e9


class Pair:
    """Two stores with room for so much."""

    def __init__(self, nbytes: int) -> None:
        self.here, self.there = Store(create_arena(4 * nbytes)), Store(create_arena(4 * nbytes))
        self.reader, self.owner = self.here.arena(), self.there.arena()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.peers = Peers(bytes(16), lambda address: socket.create_connection(self.listener.getsockname()))
        self._objects = Objects(self.there, self.owner)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=Serving(self.listener.accept()[0], bytes(16), self._objects).run, daemon=True).start()

    def rate(self, values: list[np.ndarray], fetch: Callable[[list[Wanted]], None]) -> float:
        """GB/s of all of them, in the median of seven times."""
        places = [Place(Origin(bytes(16), *put(self.there, self.owner, value)), "there") for value in values]
        rates = []
        for _ in range(7):
            writables = [create(self.here, self.reader, value.nbytes) for value in values]
            views = [memoryview(writable) for writable in writables]
            start = time.perf_counter()
            fetch([Wanted(place, bytes(20), view) for place, view in zip(places, views, strict=True)])
            rates.append(sum(value.nbytes for value in values) / (time.perf_counter() - start) / 1e9)
            for value, view, writable in zip(values, views, writables, strict=True):
                view.release()
                got = writable.seal()
                assert np.array_equal(np.frombuffer(memoryview(self.reader.get(*got)), np.uint8)[-1000:], value[-1000:])
                self.reader.free(*got)
        for place in places:
            self.owner.free(place.origin.slot, place.origin.generation)
        return statistics.median(rates)

    def alone(self, wanted: list[Wanted]) -> None:
        for place, object_id, into in wanted:
            self.peers.fetch(place, object_id, into)

    def together(self, wanted: list[Wanted]) -> None:
        for at in range(0, len(wanted), TOGETHER):
            assert not any(self.peers.fetch_many(wanted[at : at + TOGETHER]))

    def close(self) -> None:
        self.peers.close()
        self.listener.close()


def memcpy(value: np.ndarray) -> float:
    target = np.ones_like(value)
    start = time.perf_counter()
    np.copyto(target, value)
    return value.nbytes / (time.perf_counter() - start) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="MiB in all")
    size = parser.parse_args().size
    value = np.random.default_rng(0).integers(0, 255, size * MIB, np.uint8)
    pair = Pair(value.nbytes)
    large, small = [value], np.split(value, size)
    one, alone, together = pair.rate(large, pair.alone), pair.rate(small, pair.alone), pair.rate(small, pair.together)
    print(f"one object of {size} MiB {one:.2f} GB/s, {size} objects of 1 MiB together {together:.2f}, one after the other {alone:.2f}")
    print(f"plain socket {plain_socket(value.nbytes):.2f}, memcpy {memcpy(value):.2f}")
    pair.close()
    os._exit(0)


if __name__ == "__main__":
    main()
