"""Another minor version of Python, another wire version, no version at all: refused by name, and who runs goes on."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest
import shoal
from shoal_base.blocking import BlockingFrames
from shoal_base.frames import HELLO, PeerKind, Type
from shoal_raylet.v1 import raylet_pb2

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.timeout(60)]

MINE = sys.version_info[:2]


def greet(path, wire, python, kind):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(path)
    frames = BlockingFrames(sock)
    worker_id = os.urandom(16)
    frames.send(Type.HELLO, HELLO.pack(worker_id, bytes(16), bytes(4), os.getpid(), *wire, *python, kind))
    return frames, worker_id


@pytest.mark.parametrize(("wire", "python", "text"), [
    ((9, 12), MINE, r"wire versions 9\.\.12.*same version of Shoal"), ((1, 1), (3, 9), r"Python 3\.9, this side 3\.\d+: use the same minor version"),
])  # fmt: skip
def test_the_raylet_refuses_who_does_not_match(cluster, wire, python, text):
    frames, worker_id = greet(os.path.join(cluster["node_dir"], "raylet.sock"), wire, python, PeerKind.DRIVER)
    frames.expect(Type.HELLO, 10)
    frames.send(Type.REGISTER, raylet_pb2.RegisterWorker(worker_id=worker_id, pid=os.getpid(), driver=True).SerializeToString())
    payload, _ = frames.expect(Type.REGISTERED, 10)
    frames.sock.close()
    with pytest.raises(ConnectionError, match=text):
        raise ConnectionError(raylet_pb2.Registered.FromString(payload).error)
    assert shoal.get(shoal.remote(lambda: 1).remote(), timeout=30) == 1


def test_a_worker_hangs_up_on_another_wire_version(cluster):
    path = os.path.join(cluster["node_dir"], "w", shoal.get_runtime_context().get_worker_id() + ".sock")
    frames, _ = greet(path, (9, 12), MINE, PeerKind.WORKER)
    with contextlib.closing(frames.sock), pytest.raises((EOFError, ConnectionError)):
        for _ in range(3):
            frames.recv(10)
    assert shoal.get(shoal.put(1)) == 1


def test_bytes_that_are_no_frames_end_the_connection_and_nothing_else(cluster):
    for name in ("raylet.sock", os.path.join("w", shoal.get_runtime_context().get_worker_id() + ".sock")):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(os.path.join(cluster["node_dir"], name))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" + bytes(64))
            try:
                while sock.recv(4096):
                    pass
            except ConnectionResetError:
                pass
    assert shoal.get(shoal.remote(lambda: 1).remote(), timeout=30) == 1


def test_a_driver_of_another_minor_version_is_told_so_by_init():
    code = """
import sys, time, types
import shoal
from shoal._core import engine
engine.sys = types.SimpleNamespace(version_info=(3, 9, 1))
began = time.monotonic()
try:
    shoal.init("local", num_cpus=1, log_to_driver=False)
except ConnectionError as error:
    print(time.monotonic() - began < 15, shoal.is_initialized(), error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout.startswith("True False "), done.stdout + done.stderr
    assert "runs Python 3.9, this side" in done.stdout
    assert "use the same minor version" in done.stdout
