"""A small real fork server with the zygote's protocol, and workers that do as they are told on their own socket.

Its workers register like real ones, answer ACTOR_CREATE (the payload is JSON) and keep their control record.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import Any

from shoal_base.blocking import BlockingFrames
from shoal_base.connection import pack_hello
from shoal_base.frames import PeerKind, Type
from shoal_base.wire import ActorCreated, Exit, LeaseBegin, NodeDied, Owns

RECORD = struct.Struct("<IIQ16sQQ16s96s96s")


class Worker:
    def __init__(self, request: dict[str, Any]) -> None:
        from shoal_raylet.v1 import raylet_pb2 as pb

        self.id = bytes.fromhex(request["worker_id"])
        self.node_dir = request["node_dir"]
        self.orders = socket.socket(socket.AF_UNIX)
        self.orders.bind(os.path.join(self.node_dir, "w", self.id.hex() + ".test"))
        self.orders.listen()
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.path.join(self.node_dir, "raylet.sock"))
        self.frames = BlockingFrames(sock)
        self.frames.send(Type.HELLO, pack_hello(self.id, bytes(16), kind=PeerKind.WORKER))
        self.frames.send(Type.REGISTER, pb.RegisterWorker(worker_id=self.id, pid=os.getpid(), start_token=request["start_token"]).SerializeToString())
        self.frames.expect(Type.HELLO)
        payload, fds = self.frames.expect(Type.REGISTERED)
        registered = pb.Registered.FromString(payload)
        if registered.error:
            sys.exit(registered.error)
        self.control = mmap.mmap(fds[1], 4096 * 256)
        self.at = registered.control_record * 256
        self.leases: list[int] = []
        self.stays, self.dead_nodes = False, list[str]()
        self.task, self.name, self.blocked, self.words, self.actor = bytes(16), "", 0, "", bytes(16)
        self.write()

    def write(self) -> None:
        RECORD.pack_into(
            self.control, self.at, 1, os.getpid(), 1, self.task, self.blocked, 0, self.actor, self.name.encode(), self.words.encode()
        )  # fmt: skip

    def run(self) -> None:
        while True:
            for ready in select.select([self.frames.sock, self.orders], [], [])[0]:
                if ready is self.orders:
                    self.order()
                else:
                    self.frame()

    def frame(self) -> None:
        try:
            type_, payload, _fds = self.frames.recv()
        except (EOFError, OSError):
            os._exit(0)
        if type_ == Type.LEASE_BEGIN:
            self.leases.append(LeaseBegin.unpack(payload).lease_id)
        elif type_ == Type.ACTOR_CREATE:
            self.create(json.loads(payload))
        elif type_ == Type.NODE_DIED:
            self.dead_nodes.append(NodeDied.unpack(payload).node_id.hex())
        elif type_ == Type.EXIT:
            Exit.unpack(payload)
            if not self.stays:
                os._exit(0)

    def create(self, order: dict[str, Any]) -> None:
        self.actor = bytes.fromhex(order["actor"])
        self.write()
        if order["do"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order["do"] != "hang":
            self.frames.send(Type.ACTOR_CREATED, ActorCreated(self.actor, order["do"] == "ok", b"its error").pack())

    def order(self) -> None:
        conn, _ = self.orders.accept()
        with conn:
            what, *rest = json.loads(conn.recv(65536))
            answer: Any = True
            if what == "task":
                self.task, self.name = bytes.fromhex(rest[0]), rest[1]
            elif what == "block":
                self.blocked = time.monotonic_ns()
            elif what == "unblock":
                self.blocked = 0
            elif what == "words":
                self.words = rest[0]
            elif what == "print":
                print(rest[0], flush=True)
            elif what == "spawn":
                answer = subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
            elif what == "leave":  # when it likes
                self.stays = True
                self.frames.send(Type.OWNS, Owns(True, True).pack())
            elif what == "dead nodes":
                answer = self.dead_nodes
            elif what == "leases":
                answer = self.leases
            elif what == "env":
                answer = os.environ.get(rest[0])
            elif what == "hold":
                self.held = os.urandom(1 << 20) * (rest[0] >> 20)
            elif what == "fork":
                answer = os.fork()
                if not answer:
                    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
                    signal.pause()
            elif what == "exit":
                os._exit(rest[0])
            self.write()
            conn.sendall(json.dumps(answer).encode())


def child(request: dict[str, Any], control: socket.socket) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    control.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for path, fd in ((request["stdout"], 1), (request["stderr"], 2)):
        opened = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    os.environ.update(request["env"])
    if "FAIL_AT_START" in os.environ:
        os._exit(3)
    Worker(request).run()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int)
    control = socket.socket(fileno=parser.parse_args().control_fd)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    import shoal_raylet.v1.raylet_pb2  # noqa: F401  (before the first fork)

    woken_r, woken_w = os.pipe()
    os.set_blocking(woken_w, False)
    signal.set_wakeup_fd(woken_w)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    def say(**message: Any) -> None:
        control.sendall(json.dumps(message).encode() + b"\n")

    say(op="ready", pid=os.getpid())
    buffer = b""
    while True:
        ready = select.select([control, woken_r], [], [])[0]
        if woken_r in ready:
            os.read(woken_r, 4096)
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if not pid:
                    break
                say(op="exited", pid=pid, status=status)
        if control in ready:
            data = control.recv(65536)
            if not data:
                os._exit(0)  # the children die by their parent-death signal
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if not pid:
                    try:
                        child(request, control)
                    finally:
                        os._exit(1)
                say(op="forked", id=request["id"], pid=pid)


if __name__ == "__main__":
    main()
