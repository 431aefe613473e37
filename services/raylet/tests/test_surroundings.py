"""A raylet between a store, a control store and the network: what is passed on, and what it does when they are gone."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from concurrent import futures

import grpc
import pytest
from raylet_node import DriverProcess, wait_for
from shoal_base.auth import KIND_NODE, STORE_TARGET, HandshakeRefused, connect_authenticated, sync_client_interceptors
from shoal_base.frames import PeerKind, Type
from shoal_raylet.v1 import raylet_pb2 as pb

pytestmark = pytest.mark.timeout(90)


class FakeStore(grpc.GenericRpcHandler):
    """store.grpc.sock: answers each method with its name and request; remembers who is gone."""

    def __init__(self, node) -> None:
        self.gone: list[bytes] = []
        self.metadata: list[dict[str, str]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((self,))
        self._server.add_insecure_port(f"unix:{node.directory / 'store.grpc.sock'}")
        self._server.start()

    def service(self, details):
        method = details.method.rpartition("/")[2]

        def answer(request, context):
            self.metadata.append(dict(context.invocation_metadata()))
            if method == "ClientGone":
                self.gone.append(request)
            if method == "List":
                context.abort(grpc.StatusCode.NOT_FOUND, "nothing here")
            return method.encode() + request

        return grpc.unary_unary_rpc_method_handler(answer)

    def close(self):
        self._server.stop(0).wait(5)


@pytest.fixture
def stored(place):
    node = place.node()
    store = FakeStore(node)
    yield place, node, store
    store.close()


def test_the_store_is_reached_by_calls_and_through_the_port(stored):
    place, node, store = stored
    driver = place.client(node)
    assert driver.call("store/Stats", b"\x08\x01").payload == b"Stats\x08\x01"
    missing = driver.call("store/List")
    assert missing.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "nothing here" in missing.text
    with grpc.insecure_channel(node.address) as channel:
        signed = grpc.intercept_channel(channel, *sync_client_interceptors("node", place.secrets.node))
        assert signed.unary_unary("/shoal.objectstore.v1.ObjectStore/Check")(b"x", timeout=10) == b"Checkx"
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            channel.unary_unary("/shoal.objectstore.v1.ObjectStore/Check")(b"x", timeout=10)
    assert all("shoal-auth" in metadata for metadata in store.metadata), "what is passed on is signed again"


def test_a_client_number_is_used_again_only_when_the_store_has_cleaned_up_after_it(place):
    node = place.node(prestart=0)
    first = place.client(node)
    number = first.registered.store_client
    assert number >= 1
    driver = DriverProcess(node)
    number = driver.store_client
    driver.kill()
    driver.close()
    wait_for(lambda: sum(job.finished for job in place.gcs.jobs.values()) == 1, "the end of its job")
    assert place.client(node).registered.store_client not in (number, first.registered.store_client)
    store = FakeStore(node)
    try:
        wait_for(lambda: store.gone, "the word to the store")
        assert store.gone == [bytes([8, number])]
        wait_for(lambda: place.client(node).registered.store_client == number, "its number to come free")
    finally:
        store.close()


def test_the_store_gets_descriptors_and_the_connections_that_are_for_it(place):
    node = place.node()
    with pytest.raises(HandshakeRefused, match="no object store"):
        connect_authenticated(node.address, KIND_NODE, place.secrets.node, STORE_TARGET, 5.0)
    store = place.client(node, kind=PeerKind.STORE, start_token="store")
    assert store.registered.error == ""
    assert store.registered.arena_bytes == 256 << 20
    assert os.fstat(store.fds[0]).st_size == 0, "empty: its layout is the store's"
    with connect_authenticated(node.address, KIND_NODE, place.secrets.node, STORE_TARGET, 5.0) as sock:
        _payload, fds = store.frames.expect(Type.ROUTED)
        with socket.socket(fileno=fds[0]) as routed:
            sock.sendall(b"fetch")
            assert routed.recv(10) == b"fetch"


def test_a_second_gcs_address_serves_when_the_first_does_not(place):
    node = place.node(gcs_address=f"127.0.0.1:1,{place.gcs.address}")
    driver = place.client(node)
    assert driver.registered.error == ""
    wait_for(lambda: node.node_id in place.gcs.heartbeats, "heartbeats at the second")


def test_a_gcs_that_cannot_be_reached_is_an_error_in_bounded_time(place):
    place.gcs.close()
    node = place.node(gcs_address=place.gcs.address, register_timeout_s=1.0)
    assert place.gcs.address in node.ready["error"]
    assert node.process.wait(15) == 1


def test_a_wrong_secret_is_an_error_by_name(place):
    (place.secrets_dir / "node.secret").write_text("another secret that is long enough\n")
    node = place.node()
    assert "secret" in node.ready["error"]
    assert node.process.wait(15) == 1


class Link:
    """A TCP relay that can be cut."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._cut = False
        self._end_r, self._end_w = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready = select.select([self._end_r, self._listener, *self._pairs], [], [])[0]
            if self._end_r in ready:
                break
            for sock in ready:
                if sock is self._listener:
                    self._accept()
                elif sock in self._pairs:
                    self._relay(sock)
        for sock in [self._listener, *self._pairs]:
            sock.close()

    def _accept(self) -> None:
        near = self._listener.accept()[0]
        try:
            far = socket.create_connection(self._target)
        except OSError:  # nobody listens there
            near.close()
            return
        self._pairs |= {near: far, far: near}

    def _relay(self, sock: socket.socket) -> None:
        """What breaks on one side, by an end or by a reset (a heartbeat that was given up), ends on the other; the relay lives on."""
        data = b""
        with contextlib.suppress(OSError):
            data = sock.recv(65536)
            if data and not self._cut:
                self._pairs[sock].sendall(data)
            if data:
                return
        other = self._pairs.pop(sock)
        self._pairs.pop(other, None)
        sock.close()
        other.close()

    def cut(self) -> None:
        """Bytes vanish, as in a network that is partitioned: nobody is told."""
        self._cut = True

    def close(self) -> None:
        os.write(self._end_w, b"x")
        self._thread.join(10)
        os.close(self._end_r)
        os.close(self._end_w)


@pytest.fixture
def link(place):
    link = Link(place.gcs.address)
    yield link
    link.close()


def test_a_node_that_is_cut_off_from_the_gcs_while_others_are_not_ends_itself(place, link):
    place.gcs.lease_ms = 2000
    here, there = place.node(gcs_address=link.address), place.node()
    wait_for(lambda: there.node_id in [info.node_id for info in place.gcs.nodes.values()], "both nodes")
    wait_for(lambda: here.node_id in place.gcs.heartbeats, "its heartbeats")
    driver = place.client(here)
    driver.demand()
    driver.grant()
    link.cut()
    assert here.process.wait(15) == 1
    assert "cut off" in (here.directory / "logs" / "raylet.log").read_text()
    assert there.process.poll() is None


def test_nodes_that_all_lost_the_gcs_go_on(place):
    place.gcs.lease_ms = 2000
    here, there = place.node(), place.node()
    driver = place.client(here)
    wait_for(lambda: len(place.gcs.heartbeats) == 2, "both nodes")
    place.gcs.close()
    wait_for(lambda: here.state().gcs_silent_ms > 5000, "two terms without a GCS", 20.0)
    assert there.state().gcs_silent_ms > 1000
    driver.demand()
    assert driver.grant().node_id == here.node_id
    assert here.process.poll() is None
    assert there.process.poll() is None


def test_subscriptions_are_made_again_when_the_gcs_comes_back(place, link):
    node = place.node(gcs_address=link.address)
    driver = place.client(node)
    channel = "actor:" + "cd" * 16
    driver.call("raylet/Subscribe", pb.SubscribeChannels(add=[channel]).SerializeToString())
    wait_for(lambda: any(channel in channels for channels, _ in place.gcs._subscribers), "the subscription")
    for events in list(place.gcs._subscribers):
        place.gcs.loop.call_soon_threadsafe(events[1].put_nowait, None)  # the stream breaks
    wait_for(lambda: place.gcs.subscribed > 1 and any(channel in channels for channels, _ in place.gcs._subscribers), "the second subscription")
    place.gcs.publish(channel, b"again")
    assert driver.expect(Type.EVENT).endswith(b"again")
