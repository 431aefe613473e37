"""Heartbeats to a control store that is slow to take a connection."""

import contextlib
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from shoal_gcs.v1 import gcs_pb2 as gcs
from shoal_raylet.heads import Heads
from shoal_raylet.heartbeat import Heartbeat

# Each way.
SLOW_S = 0.2


def pump(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            time.sleep(SLOW_S)
            target.sendall(data)


@contextlib.contextmanager
def slow_way_to(port):
    """The port of a listening socket: what comes by it reaches the other one late, and the answers as well."""
    threads = []
    opened = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
                opened.extend((near, far))
                for ends in ((near, far), (far, near)):
                    threads.append(threading.Thread(target=pump, args=ends))
                    threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for end in opened:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for end in opened:
                end.close()


@contextlib.contextmanager
def head(answer):
    """The port of a control store that has heartbeats alone."""
    server = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=gcs.HeartbeatRequest.FromString, response_serializer=gcs.HeartbeatReply.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shoal.gcs.v1.Gcs", {"Heartbeat": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None)


@contextlib.contextmanager
def beating(heads, on_known):
    beats = Heartbeat(heads, b"s" * 32, bytes(16), {}, 1.0, 0, lambda reply, address: None, on_known, lambda asked: None)
    beats.start()
    try:
        yield beats
    finally:
        beats.stop()
        beats.join()


def test_a_control_store_that_takes_long_to_connect_to_is_heard():
    known = threading.Event()

    def answer(request, context):
        return gcs.HeartbeatReply(known=True, gcs_epoch=1)

    with head(answer) as port, slow_way_to(port) as slow, beating(Heads([f"127.0.0.1:{slow}"]), lambda asked: known.set()):
        assert known.wait(20.0)


def test_a_head_that_begins_to_lead_while_it_is_asked_is_not_left_for_one_that_is_silent():
    asked, leads, known = threading.Event(), threading.Event(), threading.Event()

    def answer(request, context):
        asked.set()
        leads.wait(20.0)
        return gcs.HeartbeatReply(known=True, gcs_epoch=1)

    # Connections to it are made, and nobody ever takes one.
    with socket.create_server(("127.0.0.1", 0)) as silent, head(answer) as port:
        address = f"127.0.0.1:{port}"
        heads = Heads([address, f"127.0.0.1:{silent.getsockname()[1]}"])
        with beating(heads, lambda asked: known.set()) as beats:
            assert asked.wait(20.0)
            beats.go_to(address)
            leads.set()
            assert known.wait(20.0)
            assert heads.current == address
            assert select.select([silent], [], [], 0.0)[0] == [], "the other one was not even asked"
