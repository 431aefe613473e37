"""Serving's figures, beside the bare servers in the same run.

    python benchmarks/serve.py                               # every row
    python benchmarks/serve.py --peer PYTHON                 # the same rows with Ray Serve in that environment, and the ratios
    python benchmarks/serve.py --only http --seconds 5

An echo of five bytes with one replica and one proxy. The bare servers, uvicorn and Granian, answer the same from one process, and uvicorn from two, as many as
proxy and replica are. Requests come from one more process with raw asyncio sockets, which is light but takes its share of a small machine, as it does from the
bare servers. Handles are called from this program. Figures from a busy machine mean little: the load is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import multiprocessing
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b"hello"
CONNECTIONS = (1, 32, 512)
AT_ONCE = 1000
WINDOWS = 3
# Limit: nothing measured here may keep a run waiting for longer.
TIMEOUT_S = 180.0
LATENCY_ROWS = ("serve.run", "p50", "p99")


# -- the load -------------------------------------------------------------------------------------------------------


class _Client(asyncio.Protocol):
    """One connection that asks again as soon as it was answered."""

    def __init__(self, shared: _Load) -> None:
        self.shared = shared
        self.got = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self.asked = time.perf_counter()
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.got += data
        head, end, rest = self.got.partition(b"\r\n\r\n")
        # Ray answers in chunks.
        if not end or not rest.endswith(b"0\r\n\r\n" if b"chunked" in head.lower() else BODY):
            return
        now = time.perf_counter()
        if not self.got.startswith(b"HTTP/1.1 200"):
            self.shared.bad += 1
        self.got = b""
        self.shared.latencies.append(now - self.asked)
        if now < self.shared.end:
            self._ask()
        else:
            self.transport.close()
            self.shared.left -= 1
            if not self.shared.left:
                self.shared.done.set_result(None)


class _Load:
    def __init__(self, connections: int, seconds: float) -> None:
        self.latencies: list[float] = []
        self.bad = 0
        self.left = connections
        self.end = time.perf_counter() + seconds
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


async def _load(port: int, connections: int, seconds: float) -> dict[str, float]:
    load = _Load(connections, seconds)
    start = time.perf_counter()
    for _ in range(connections):
        await asyncio.get_running_loop().create_connection(lambda: _Client(load), "127.0.0.1", port)
    await asyncio.wait_for(load.done, seconds + TIMEOUT_S)
    took = time.perf_counter() - start
    load.latencies.sort()
    count = len(load.latencies)
    return {"per_s": count / took, "p50_us": load.latencies[count // 2] * 1e6, "p99_us": load.latencies[int(count * 0.99)] * 1e6, "bad": load.bad}


def _run_load(port: int, connections: int, seconds: float) -> dict[str, float]:
    """In a process of its own: this one may have threads that a server's figures should not pay for."""
    command = [sys.executable, __file__, "--load", str(port), str(connections), str(seconds)]
    windows = [json.loads(subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S, text=True).stdout) for _ in range(WINDOWS)]
    if any(window["bad"] for window in windows):
        raise RuntimeError(f"{sum(w['bad'] for w in windows):g} requests were not answered with 200")
    return sorted(windows, key=lambda window: window["per_s"])[WINDOWS // 2]


def _http_rows(name: str, port: int, seconds: float, rows: dict[str, float]) -> None:
    for connections in CONNECTIONS:
        measured = _run_load(port, connections, seconds)
        rows[f"{name}, {connections} connections, per s"] = measured["per_s"]
        rows[f"{name}, {connections} connections, p99 us"] = measured["p99_us"]


# -- bare servers ---------------------------------------------------------------------------------------------------


async def _bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), (b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": BODY})


def _bare_uvicorn(port: int) -> None:
    import uvicorn

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(_bare, http="httptools", loop="uvloop", lifespan="off", interface="asgi3", proxy_headers=False, log_level="error", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def _bare_granian(port: int) -> None:
    import uvloop
    from granian.server.embed import Server

    uvloop.run(Server(_bare, address="127.0.0.1", port=port, interface="asginl", log_enabled=False).serve())


def _bare_rows(name: str, target: Callable[[int], None], processes: int, seconds: float, rows: dict[str, float]) -> None:
    port = _free_port()
    started = [multiprocessing.get_context("spawn").Process(target=target, args=(port,)) for _ in range(processes)]
    for process in started:
        process.start()
    try:
        _wait_for(port)
        time.sleep(0.5)  # for the second process; a figure taken without it would be of one
        _http_rows(name, port, seconds, rows)
    finally:
        for process in started:
            process.kill()
            process.join()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.02)
    raise TimeoutError(f"nobody listens on port {port}")


# -- an engine ------------------------------------------------------------------------------------------------------


def _engine_rows(package: str, only: str, seconds: float) -> dict[str, float]:
    """The same rows for `shoal` and for `ray`: the interface is the same."""
    engine = importlib.import_module(package)
    serve = importlib.import_module(f"{package}.serve")
    rows: dict[str, float] = {}
    engine.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)

    class Echo:
        async def __call__(self, request: Any = None) -> str:
            return "hello"

        async def same(self, x: Any) -> Any:
            return x

    port = _free_port()
    start = time.perf_counter()
    serve.start(http_options={"port": port})
    handle = serve.run(serve.deployment(max_ongoing_requests=1000)(Echo).bind())
    rows["serve.run of an echo with its start, s"] = time.perf_counter() - start
    start = time.perf_counter()
    serve.run(serve.deployment(max_ongoing_requests=1000)(Echo).bind(), name="second", route_prefix="/second")
    rows["serve.run of a second echo, s"] = time.perf_counter() - start
    if only in ("", "handle"):
        rows |= _handle_rows(handle, seconds)
    if only in ("", "http"):
        _wait_for(port)
        _http_rows("HTTP", port, seconds, rows)
    serve.shutdown()
    engine.shutdown()
    return rows


def _handle_rows(handle: Any, seconds: float) -> dict[str, float]:
    for _ in range(20):
        handle.same.remote(1).result()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        handle.same.remote(1).result()
        samples.append(time.perf_counter() - start)
    samples.sort()
    rates = []
    for _ in range(WINDOWS):
        start = time.perf_counter()
        for response in [handle.same.remote(i) for i in range(AT_ONCE)]:
            response.result()
        rates.append(AT_ONCE / (time.perf_counter() - start))
    return {
        "handle call, one at a time, p50 us": samples[len(samples) // 2] * 1e6, "handle call, one at a time, p99 us": samples[int(len(samples) * 0.99)] * 1e6,
        f"handle calls, {AT_ONCE} at once, per s": statistics.median(rates),
    }  # fmt: skip


# -- the table ------------------------------------------------------------------------------------------------------


def _better(name: str, ours: float, theirs: float) -> float:
    lower = name.endswith((" us", ", s"))
    return theirs / ours if lower else ours / theirs


def _print(ours: dict[str, float], peer: dict[str, float]) -> None:
    width = max(len(name) for name in [*ours, *peer])
    print(f"{'':{width}}  {'ours':>12}" + (f"  {'peer':>12}  {'times better':>12}" if peer else ""))
    for name, value in ours.items():
        line = f"{name:{width}}  {value:>12,.2f}"
        if name in peer:
            line += f"  {peer[name]:>12,.2f}  {_better(name, value, peer[name]):>12.1f}"
        print(line)


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--only", choices=("handle", "http", ""), default="", help="only these rows")
    arguments.add_argument("--seconds", type=float, default=2.0, help="of each window")
    arguments.add_argument("--peer", metavar="PYTHON", help="a Python with Ray Serve, for the same rows there")
    arguments.add_argument("--json", metavar="FILE", help="write the figures there too")
    arguments.add_argument("--load", nargs=3, metavar=("PORT", "CONNECTIONS", "SECONDS"), help=argparse.SUPPRESS)
    arguments.add_argument("--engine", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.load:
        port, connections, seconds = given.load
        try:
            import uvloop

            runner: Any = uvloop.run
        except ImportError:
            runner = asyncio.run
        print(json.dumps(runner(_load(int(port), int(connections), float(seconds)))))
        return
    if given.engine:
        rows = _engine_rows(given.engine, given.only, given.seconds)
        print("\n" + json.dumps(rows))
        return
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    ours = _measured(sys.executable, "shoal", given)
    peer = _measured(given.peer, "ray", given) if given.peer else {}
    if given.only in ("", "http"):
        _bare_rows("bare uvicorn, 1 process", _bare_uvicorn, 1, given.seconds, ours)
        _bare_rows("bare uvicorn, 2 processes", _bare_uvicorn, 2, given.seconds, ours)
        _bare_rows("bare Granian, 1 process", _bare_granian, 1, given.seconds, ours)
    _print(ours, peer)
    if given.json:
        with open(given.json, "w") as file:
            json.dump({"ours": ours, "peer": peer, "load": os.getloadavg()}, file, indent=1)


def _measured(python: str, engine: str, given: Any) -> dict[str, float]:
    command = [python, __file__, "--engine", engine, "--only", given.only, "--seconds", str(given.seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=10 * TIMEOUT_S, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} in {python} ended with {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
