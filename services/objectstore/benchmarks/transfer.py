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
from collections.abc import Iterator, Sequence

import numpy as np
from shoal_base.wire import Fetched, Free, Pull, Pulled
from shoal_objectstore import Arena, Store, create_arena
from shoal_objectstore._arena import WHOLE
from shoal_objectstore.peer import Bytes, Peers, Serving
from shoal_objectstore.pulls import Origin, Place

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    nbytes = parser.parse_args().size * MIB
    here, there = Store(create_arena(4 * nbytes)), Store(create_arena(4 * nbytes))
    owner, reader = there.arena(), here.arena()
    for store, arena in ((there, owner), (here, reader)):
        extent = store.reserve(nbytes, WHOLE)
        store.lend_extent(extent, 0)
        arena.add_extent(extent)
    data = np.random.default_rng(0).integers(0, 255, nbytes, np.uint8)
    location = owner.put(data)
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=Serving(listener.accept()[0], bytes(16), Objects(there, owner)).run, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    peers = Peers(bytes(16), lambda address: socket.create_connection(listener.getsockname()))
    rates = []
    for _ in range(7):
        writable = reader.create(nbytes)
        with memoryview(writable) as view:
            start = time.perf_counter()
            peers.fetch(Place(Origin(bytes(16), *location), "there"), bytes(20), view)
            rates.append(nbytes / (time.perf_counter() - start) / 1e9)
        got = writable.seal()
        assert np.array_equal(np.frombuffer(memoryview(reader.get(*got)), np.uint8)[-1000:], data[-1000:])
        reader.free(*got)
    target = np.ones(nbytes, np.uint8)
    start = time.perf_counter()
    np.copyto(target, data)
    copy = nbytes / (time.perf_counter() - start) / 1e9
    print(f"arena to arena {statistics.median(rates):.2f} GB/s, plain socket {plain_socket(nbytes):.2f}, memcpy {copy:.2f}")
    peers.close()
    listener.close()
    os._exit(0)


if __name__ == "__main__":
    main()
