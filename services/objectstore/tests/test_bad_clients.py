"""Frames of nonsense, from clients and from other stores, and calls of the contract with nonsense in them: whoever sends them loses its connection at most,
everybody else is served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import DecodeError
from shoal_base.auth import KIND_NODE, STORE_TARGET, aio_client_interceptors, connect_authenticated
from shoal_base.connection import pack_hello
from shoal_base.frames import HEADER_SIZE, PeerKind, Type, pack_header
from shoal_base.wire import ExtentRequest, Fetch, FetchMany, Free, Keep, Pull
from shoal_objectstore.v1 import objectstore_pb2 as pb
from store_node import MIB, Client, Node, nodes, until

pytestmark = pytest.mark.timeout(150)
SEED = int(os.environ.get("SHOAL_SEED", "1"))
ROUNDS = int(os.environ.get("SHOAL_FUZZ", "150"))
HELLO = pack_hello(bytes(16), bytes(16), kind=PeerKind.WORKER)


def frame(type_: int, payload: bytes, sequence: int) -> bytes:
    return pack_header(len(payload), type_, epoch=1, sequence=sequence) + payload


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Cut short, lengthened, or with a few bytes changed; numbers at their limits among them."""
    out = bytearray(data)
    for _ in range(rng.randrange(4)):
        what = rng.randrange(4)
        at = rng.randrange(len(out) + 1)
        if what == 0:
            del out[at:]
        elif what == 1:
            out[at:at] = rng.randbytes(rng.randrange(20))
        elif what == 2:
            out[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))
        elif out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def messages(node: Node) -> list[tuple[int, bytes]]:
    far, address = b"f" * 16, "127.0.0.1:1"
    return [
        (Type.EXTENT_REQUEST, ExtentRequest(1, 5 * MIB).pack()),
        (Type.PULL, Pull(1, bytes(20), 1000, far, 3, 4, address, 2, ((far, 1, 2, address),), bytes(32)).pack()),
        (Type.PULL, Pull(2, bytes(20), 1000, node.node_id, 8000, 9, "").pack()),
        (Type.FREE, Free(node.node_id, ((8000, 9), (8001, 1)), "", 4).pack()),
        (Type.KEEP, Keep(node.node_id, ((8000, 9),), "", 5).pack()),
        (Type.FREE, Free(far, ((8000, 9),), "no address", 6).pack()),
        (Type.FETCH, Fetch(bytes(20), 8000, 9, 0, 0, node.node_id).pack()),
        (Type.FETCH_MANY, FetchMany(node.node_id, ((bytes(20), 8000, 9), (bytes(20), 8001, 1))).pack()),
        (Type.CALL, rng_bytes(40)),
        (99, b"a type that nobody knows"),
    ]


def rng_bytes(n: int) -> bytes:
    return random.Random(n).randbytes(n)


def nonsense(node: Node, rng: random.Random, connect: Callable[[], socket.socket]) -> None:
    with contextlib.closing(connect()) as sock, contextlib.suppress(OSError):
        sock.settimeout(0.05)
        if rng.random() < 0.1:
            sock.sendall(rng.randbytes(rng.randrange(1, 300)))
        else:
            sock.sendall(frame(Type.HELLO, HELLO if rng.random() < 0.9 else mutated(rng, HELLO), 1))
            for sequence in range(2, 2 + rng.randrange(1, 8)):
                type_, payload = rng.choice(messages(node))
                data = frame(type_, mutated(rng, payload), sequence)
                if rng.random() < 0.1:
                    data = mutated(rng, data[:HEADER_SIZE]) + data[HEADER_SIZE:]
                sock.sendall(data)
        sock.recv(1 << 16)


@pytest.mark.parametrize("who", ["client", "store"])
def test_nonsense_harms_nobody_else(tmp_path: Path, who: str) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=64 * MIB, full_wait_s=0.2) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            location = await asyncio.to_thread(one.put, b"honest" * 50_000)
            rng = random.Random(SEED)

            def as_client() -> socket.socket:
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(str(node.dir / "store.sock"))
                return sock

            def as_store() -> socket.socket:
                return connect_authenticated(node.raylet.address, KIND_NODE, node.secret, STORE_TARGET, 5.0)

            connect = as_client if who == "client" else as_store
            for _ in range(ROUNDS):
                await asyncio.to_thread(nonsense, node, rng, connect)
            assert bytes(memoryview(one.arena.get(*location))[:6]) == b"honest"
            again = await asyncio.to_thread(one.put, b"still" * 50_000)
            assert bytes(memoryview(one.arena.get(*again))[:5]) == b"still"
            assert await asyncio.to_thread(node.store.keeper.store.check) == []
            await until(lambda: len(node.store._clients) <= 2 and not len(node.store.neighbours), "one watches for the end of this process", 60)
            await until(lambda: not node.store.figures()["pulling"] and not node.store.figures()["pulls_queued"], "no pull is left", 60)
            one.close()

    asyncio.run(main())


SERVICE = pb.DESCRIPTOR.services_by_name["ObjectStore"]


def contract_messages(node: Node) -> dict[str, bytes]:
    """Something sensible for each call."""
    far = pb.Location(object_id=bytes(20), node_id=b"f" * 16, slot=3, generation=4, size_bytes=1000)
    here = pb.Location(object_id=bytes(20), node_id=node.node_id, slot=8000, generation=9, size_bytes=1000)
    pull = pb.PullRequest(address="127.0.0.1:1", timeout_ms=50)
    getattr(pull, "from").CopyFrom(far)
    sensible = {
        "List": pb.ListRequest(limit=10), "Pull": pull, "Spill": pb.SpillRequest(bytes=MIB), "Free": pb.FreeRequest(objects=[here, far]),
        "ClientGone": pb.ClientGoneRequest(client=7),
    }  # fmt: skip
    return {method.name: sensible[method.name].SerializeToString() if method.name in sensible else b"" for method in SERVICE.methods}


def ends_a_living_client(name: str, payload: bytes) -> bool:
    """That is no nonsense: the raylet alone may call it, and is believed."""
    try:
        return name == "ClientGone" and pb.ClientGoneRequest.FromString(payload).client == 1
    except DecodeError:
        return False


def test_nonsense_in_the_contracts_calls_harms_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=64 * MIB, full_wait_s=0.2) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            honest = b"honest" * 50_000
            location = await asyncio.to_thread(one.put, honest)
            rng, messages = random.Random(SEED), contract_messages(node)
            answered, refused = 0, []
            address, interceptors = f"unix:{node.dir}/store.grpc.sock", aio_client_interceptors("node", node.secret)
            async with grpc.aio.insecure_channel(address, interceptors=interceptors) as channel:
                for _ in range(ROUNDS):
                    name, sensible = rng.choice(list(messages.items()))
                    payload = rng.randbytes(rng.randrange(60)) if rng.random() < 0.2 else mutated(rng, sensible)
                    if ends_a_living_client(name, payload):
                        continue
                    try:
                        await channel.unary_unary(f"/{SERVICE.full_name}/{name}")(payload, timeout=0.5)
                        answered += 1
                    except grpc.aio.AioRpcError as error:
                        refused.append((name, error.code()))
            assert answered and refused
            assert all(code is not grpc.StatusCode.UNAVAILABLE or name == "Pull" for name, code in refused), refused
            assert bytes(await asyncio.to_thread(one.read, node, location, len(honest))) == honest
            assert await asyncio.to_thread(node.store.keeper.store.check) == []
            assert 1 in node.store.keeper.store.clients()
            one.close()

    asyncio.run(main())
