"""Objects between two stores in two network namespaces over veth, beside iperf3 on the same wire: python benchmarks/network.py [--size MIB] [--rounds N]

As root, with iproute2, util-linux and iperf3 (Debian and Ubuntu: apt install iproute2 iperf3; `make network` installs it). Both stores are processes of their
own and use the service's own transfer code, without authentication and raylets; the namespaces go with the processes. iperf3 and the transfer take turns, so
that what else the machine does hits both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from shoal_base.processes import set_parent_death_signal
from shoal_objectstore import Arena, Store, create_arena
from shoal_objectstore._arena import WHOLE
from shoal_objectstore.peer import Peers, Serving
from shoal_objectstore.pulls import Origin, Place
from shoal_objectstore.transfer import Parts, bring, streams
from transfer import Objects

MIB = 1 << 20
HERE, THERE, PORT = "10.77.0.1", "10.77.0.2", 7700


def arena_of(nbytes: int) -> tuple[Store, Arena]:
    store = Store(create_arena(2 * nbytes))
    own = store.arena()
    extent = store.reserve(nbytes, WHOLE)
    store.lend_extent(extent, 0)
    own.add_extent(extent)
    return store, own


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def up(name: str, address: str) -> None:
    ip("addr", "add", f"{address}/24", "dev", name)
    ip("link", "set", name, "up")


def source(nbytes: int) -> None:
    """The other store, in a namespace of its own: says where its object is, and serves it until it is killed."""
    set_parent_death_signal()
    print(os.getpid(), flush=True)
    sys.stdin.readline()  # the wire is there
    up("there", THERE)
    store, own = arena_of(nbytes)
    location = own.put(np.random.default_rng(0).integers(0, 255, nbytes, np.uint8).data)
    listener = socket.create_server((THERE, PORT))
    iperf = subprocess.Popen(["iperf3", "--server", "--bind", THERE], stdout=subprocess.DEVNULL, preexec_fn=set_parent_death_signal)
    print(json.dumps(location), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while iperf.poll() is None:
            threading.Thread(target=Serving(listener.accept()[0], bytes(16), Objects(store, own)).run, daemon=True).start()


def iperf(count: int, seconds: int) -> float:
    """GB/s from there to here."""
    command = ["iperf3", "--client", THERE, "--reverse", "--parallel", str(count), "--time", str(seconds), "--json"]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=seconds + 30).stdout)
    return float(told["end"]["sum_received"]["bits_per_second"]) / 8e9


class Reader:
    def __init__(self, nbytes: int, location: tuple[int, int]) -> None:
        self.nbytes = nbytes
        self.store, self.own = arena_of(nbytes)
        self.peers = Peers(bytes(16), lambda address: socket.create_connection((THERE, PORT)))
        self.pool = ThreadPoolExecutor(4)
        self.place = Place(Origin(bytes(16), *location), f"{THERE}:{PORT}")

    def once(self) -> float:
        """GB/s of one object, from the question to the sealed copy."""
        began = time.perf_counter()
        writable = self.own.create(self.nbytes)
        with memoryview(writable) as view:
            asyncio.run(bring(self.peers, self.pool, Parts(self.nbytes, [self.place]), bytes(20), view))
        location = writable.seal()
        rate = self.nbytes / (time.perf_counter() - began) / 1e9
        self.own.free(*location)
        return rate


def measure(nbytes: int, rounds: int, seconds: int) -> None:
    ip("link", "set", "lo", "up")
    command = ["unshare", "--net", sys.executable, __file__, "--source", "--size", str(nbytes // MIB)]
    there = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert there.stdin is not None and there.stdout is not None
    try:
        pid = int(there.stdout.readline())
        ip("link", "add", "here", "type", "veth", "peer", "name", "there", "netns", str(pid))
        up("here", HERE)
        there.stdin.write("\n")
        there.stdin.flush()
        reader = Reader(nbytes, tuple(json.loads(there.stdout.readline())))
        reader.once()
        count = streams(nbytes)
        rows: dict[str, list[float]] = {"iperf3, 1 stream": [], f"iperf3, {count} streams": [], f"one object of {nbytes // MIB} MiB, {count} streams": []}
        one, same, ours = rows.values()
        for _ in range(rounds):
            one.append(iperf(1, seconds))
            same.append(iperf(count, seconds))
            ours += [reader.once() for _ in range(5)]
        for name, found in rows.items():
            print(f"{name:44} {statistics.median(found):6.2f} GB/s   ({min(found):.2f} to {max(found):.2f})")
        ratios = [statistics.median(ours) / statistics.median(floor) for floor in (one, same)]
        print(f"ratio: {ratios[0]:.2f} of one stream, {ratios[1]:.2f} of {count}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    finally:
        there.kill()
        there.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="MiB of the object")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each run of iperf3, which knows whole ones only")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--source", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.source:
        source(given.size * MIB)
    elif given.inside:
        measure(given.size * MIB, given.rounds, given.seconds)
    else:
        missing = [name for name in ("ip", "unshare", "iperf3") if shutil.which(name) is None]
        if missing:
            sys.exit(f"{', '.join(missing)}: not found. On Debian or Ubuntu: apt install iproute2 util-linux iperf3")
        os.execvp("unshare", ["unshare", "--net", sys.executable, __file__, "--inside", *sys.argv[1:]])


if __name__ == "__main__":
    main()
