"""Heartbeats to a control store that is slow to take a connection."""

import contextlib
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
    with source, target, contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            time.sleep(SLOW_S)
            target.sendall(data)


@contextlib.contextmanager
def slow_way_to(port):
    """The port of a listening socket: what comes by it reaches the other one late, and the answers as well."""
    threads = []

    def accept():
        with contextlib.suppress(OSError):
            while True:
                # The server may have stopped by the time of a later try.
                with listener.accept()[0] as near, socket.create_connection(("127.0.0.1", port)) as far:
                    for ends in ((near, far), (far, near)):
                        threads.append(threading.Thread(target=pump, args=[end.dup() for end in ends]))
                        threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
    for thread in threads:
        thread.join()


def test_a_control_store_that_takes_long_to_connect_to_is_heard():
    known = threading.Event()
    server = grpc.server(ThreadPoolExecutor(2))
    answer = grpc.unary_unary_rpc_method_handler(
        lambda request, context: gcs.HeartbeatReply(known=True, gcs_epoch=1),
        request_deserializer=gcs.HeartbeatRequest.FromString,
        response_serializer=gcs.HeartbeatReply.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shoal.gcs.v1.Gcs", {"Heartbeat": answer}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with slow_way_to(port) as slow:
        heads = Heads([f"127.0.0.1:{slow}"])
        beats = Heartbeat(heads, b"s" * 32, bytes(16), {}, 1.0, 0, lambda reply, address: None, lambda asked: known.set(), lambda asked: None)
        beats.start()
        try:
            assert known.wait(20.0)
        finally:
            beats.stop()
            beats.join()
            server.stop(None)
