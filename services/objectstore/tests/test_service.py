"""The service as a process's shell, beside a fake raylet and real client processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from shoal_base.auth import make_secret_file
from shoal_base.blocking import BlockingFrames
from shoal_base.connection import pack_hello
from shoal_base.errors import Code
from shoal_base.frames import PeerKind, Type
from shoal_base.wire import Free
from shoal_objectstore import join
from shoal_objectstore._arena import Arena, ObjectGone
from shoal_objectstore.server import ObjectStore
from shoal_objectstore.v1 import objectstore_pb2 as pb
from shoal_objectstore.v1 import objectstore_pb2_grpc as pb_grpc
from store_node import MIB, Client, Node, nodes, until

pytestmark = pytest.mark.timeout(60)


def test_a_client_puts_and_another_gets_after_one_grant(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            location = await asyncio.to_thread(one.put, b"x" * 300_000)
            reader = Arena(node.raylet.arena, 2)
            assert bytes(memoryview(reader.get(*location))) == b"x" * 300_000
            for _ in range(20):
                again = one.arena.put(b"y" * 300_000)  # no message: its space is its own
                one.arena.free(*again)
            assert node.raylet.registered[0][10] == b"store"
            one.close()

    asyncio.run(main())


def test_an_object_travels_between_two_stores_and_back_to_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        data = os.urandom(5 * MIB + 123)
        async with nodes(tmp_path, 2) as [here, there]:
            owner, reader = await asyncio.to_thread(Client, there, 1), await asyncio.to_thread(Client, here, 1)
            location = await asyncio.to_thread(owner.put, data)
            pulled = await asyncio.to_thread(reader.pull, there, location, len(data))
            assert pulled.code == 0, pulled.text
            assert bytes(memoryview(reader.arena.get(pulled.slot, pulled.generation))) == data
            again = await asyncio.to_thread(reader.pull, there, location, len(data))
            assert (again.slot, again.generation) == (pulled.slot, pulled.generation), "a copy that is here is not fetched again"
            assert (here.store.pulling.pulled, there.store.neighbours.pushed) == (1, 1)
            # The owner's frees: the copy here, and from here the primary there.
            reader.frames.send(Type.FREE, Free(here.node_id, ((pulled.slot, pulled.generation),)).pack())
            reader.frames.send(Type.FREE, Free(there.node_id, (location,), there.raylet.address).pack())

            def gone(arena: Arena, at: tuple[int, int]) -> bool:
                try:
                    arena.get(*at)
                except ObjectGone:
                    return True
                return False

            await until(lambda: gone(owner.arena, location) and gone(reader.arena, (pulled.slot, pulled.generation)), "both copies are freed")
            lost = await asyncio.to_thread(reader.pull, there, location, len(data))
            assert lost.code == Code.OBJECT_FREED
            assert "no more" in lost.text
            owner.close()
            reader.close()

    asyncio.run(main())


def test_many_askers_share_one_transfer(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2) as [here, there]:
            owner = await asyncio.to_thread(Client, there, 1)
            location = await asyncio.to_thread(owner.put, b"z" * MIB)
            async with here.stub() as stub:
                request = pb.PullRequest(address=there.raylet.address, timeout_ms=20_000)
                getattr(request, "from").CopyFrom(
                    pb.Location(object_id=bytes(20), node_id=there.node_id, slot=location[0], generation=location[1], size_bytes=MIB)
                )
                answers = await asyncio.gather(*(stub.Pull(request) for _ in range(20)))
            assert len({(a.slot, a.generation) for a in answers}) == 1
            assert there.store.neighbours.pushed == 1
            owner.close()

    asyncio.run(main())


def test_a_pull_from_nowhere_says_who_did_not_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2) as [here, there]:
            reader = await asyncio.to_thread(Client, here, 1)
            closed = socket.create_server(("127.0.0.1", 0))
            there.raylet.address = f"127.0.0.1:{closed.getsockname()[1]}"
            closed.close()
            answer = await asyncio.to_thread(reader.pull, there, (5, 1), MIB)
            assert answer.code == Code.UNREACHABLE
            assert there.raylet.address in answer.text
            assert here.store.keeper.store.sweep()["created"] == 0, "the room for it was given up"
            reader.close()

    asyncio.run(main())


def test_a_full_arena_refuses_in_time_and_says_what_fills_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB, full_wait_s=0.3, spill=False) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            kept = [await asyncio.to_thread(one.put, bytes(3 * MIB)) for _ in range(10)]
            refused = await asyncio.to_thread(one.extent, 3 * MIB)
            assert refused.code == Code.ARENA_FULL
            assert "31,457,280 are in 10 objects" in refused.text
            assert f"put by pid {os.getpid()}" in refused.text
            never = await asyncio.to_thread(one.extent, 64 * MIB)
            assert never.code == Code.ARENA_FULL
            assert "33,554,432 bytes in all" in never.text
            one.arena.free(*kept.pop())
            await asyncio.to_thread(one.put, bytes(3 * MIB))
            one.close()

    asyncio.run(main())


def test_a_put_that_waits_for_space_gets_it_when_another_frees(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, capacity=32 * MIB, spill=False) as [node]:
            one, two = await asyncio.to_thread(Client, node, 1), Arena(node.raylet.arena, 2)
            kept = [await asyncio.to_thread(one.put, bytes(9 * MIB)) for _ in range(3)]
            waiting = asyncio.create_task(asyncio.to_thread(one.extent, 9 * MIB))
            await until(lambda: node.store.keeper.space.waiting == 1, "it waits")
            two.free(*kept[0])
            assert (await waiting).code == 0
            one.close()

    asyncio.run(main())


def test_copies_of_other_nodes_objects_make_room_before_anybody_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path, 2, capacity=32 * MIB, full_wait_s=5.0, spill=False) as [here, there]:
            owner, reader = await asyncio.to_thread(Client, there, 1), await asyncio.to_thread(Client, here, 1)
            location = await asyncio.to_thread(owner.put, bytes(20 * MIB))
            assert (await asyncio.to_thread(reader.pull, there, location, 20 * MIB)).code == 0
            here.store.pulling.grace.end(float("inf"))
            assert (await asyncio.to_thread(reader.extent, 20 * MIB)).code == 0
            owner.close()
            reader.close()

    asyncio.run(main())


CHILD = """
import os, socket, sys
from shoal_base.blocking import BlockingFrames
from shoal_base.connection import pack_hello
from shoal_base.frames import Type
from shoal_base.wire import ExtentRequest, ExtentGrant
from shoal_objectstore._arena import Arena
fd, path = int(sys.argv[1]), sys.argv[2]
arena = Arena(fd, 7)
sock = socket.socket(socket.AF_UNIX); sock.connect(path)
frames = BlockingFrames(sock)
frames.send(Type.HELLO, pack_hello(bytes(16), bytes(16), kind=1)); frames.expect(Type.HELLO)
frames.send(Type.EXTENT_REQUEST, ExtentRequest(1, 200_000).pack())
arena.add_extent(ExtentGrant.unpack(frames.expect(Type.EXTENT_GRANT)[0]).extent)
sealed = arena.put(b"s" * 200_000)
unsealed = arena.create(200_000)
pin = arena.get(*sealed)
if sys.argv[3] == "silent":
    frames.close()
print(*sealed, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["connected", "silent"])
def test_what_a_killed_client_held_comes_back_within_a_second(tmp_path: Path, how: str) -> None:
    async def main() -> None:
        async with nodes(tmp_path) as [node]:
            os.set_inheritable(node.raylet.arena, True)
            child = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-c", CHILD, str(node.raylet.arena), str(node.dir / "store.sock"), how],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
            assert child.stdout
            slot, generation = map(int, (await asyncio.to_thread(child.stdout.readline)).split())
            store = node.store.keeper.store
            if how == "silent":
                await until(lambda: all(c.conn.closed for c in node.store._clients), "its connection is closed")
            assert 7 in store.clients(), "alive: what it holds stays, whatever its socket does"
            child.send_signal(signal.SIGKILL)
            await asyncio.to_thread(child.wait)
            await until(lambda: 7 not in store.clients(), "it was taken back", 3.0)
            child.stdin.close()  # type: ignore[union-attr]
            child.stdout.close()
            reader = Arena(node.raylet.arena, 8)
            assert len(reader.get(slot, generation)) == 200_000, "what it sealed is its owner's"
            reader.free(slot, generation)
            assert store.sweep()["created"] == 0
            assert store.check(True) == []
            assert store.resident_bytes == store.free_warm_bytes

    asyncio.run(main())


def test_a_restarted_store_serves_what_was_sealed(tmp_path: Path) -> None:
    async def main() -> None:
        node = Node(1, tmp_path, 64 * MIB)
        await node.start()
        one = await asyncio.to_thread(Client, node, 1)
        location = await asyncio.to_thread(one.put, b"q" * 500_000)
        await node.store.close()
        one.close()
        assert bytes(one.arena.get(*location))[:1] == b"q", "clients go on meanwhile"
        during = one.arena.put(b"r" * 1000)
        node.store = ObjectStore(node.config)
        await node.store.start()
        async with node.stub() as stub:
            listed = await stub.List(pb.ListRequest())
            assert {(o.slot, o.generation) for o in listed.objects} == {location, during}
            assert (await stub.Check(pb.Empty())).ok
        await node.close()

    asyncio.run(main())


def test_the_contract_tells_figures_and_frees(tmp_path: Path) -> None:
    async def main() -> None:
        async with nodes(tmp_path) as [node]:
            one = await asyncio.to_thread(Client, node, 1)
            slot, generation = await asyncio.to_thread(one.put, b"w" * 100_000)
            async with node.stub() as stub:
                await stub.Free(pb.FreeRequest(objects=[pb.Location(slot=slot, generation=generation)]))
                with pytest.raises(ObjectGone):
                    one.arena.get(slot, generation)
                stats = await stub.Stats(pb.Empty())
                assert stats.capacity_bytes == 64 * MIB
                assert stats.clients == 2 or stats.clients == 1
                assert "shoal_objectstore_puts 1" in (await stub.Metrics(pb.Empty())).text
                await stub.ClientGone(pb.ClientGoneRequest(client=1))
                assert 1 not in node.store.keeper.store.clients()
                with pytest.raises(grpc.aio.AioRpcError, match="1 to 511"):
                    await stub.ClientGone(pb.ClientGoneRequest(client=0))
            async with grpc.aio.insecure_channel(f"unix:{node.dir}/store.grpc.sock") as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await pb_grpc.ObjectStoreStub(channel).Stats(pb.Empty())
            one.close()

    asyncio.run(main())


def test_a_refusal_by_the_raylet_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        node = Node(1, tmp_path, 64 * MIB)
        node.raylet.refuse = "the store's start token is wrong"
        await node.raylet.start()
        store = ObjectStore(node.config)
        with pytest.raises(Exception, match="start token is wrong"):
            await store.start()
        await store.close()
        await node.raylet.close()

    asyncio.run(main())


def test_the_field_numbers_are_those_of_the_raylets_contract() -> None:
    proto = Path(__file__).parents[2] / "raylet/proto/shoal_raylet/v1/raylet.proto"
    if not proto.exists():
        pytest.skip("the raylet's contract is not beside this package")
    text = proto.read_text()
    for message, fields in (
        ("RegisterWorker", {"pid": join._PID, "start_token": join._START_TOKEN}),
        ("Registered", {"node_address": join._NODE_ADDRESS, "arena_bytes": join._ARENA_BYTES, "error": join._ERROR}),
    ):
        body = text.split(f"message {message} {{", 1)[1].split("\n}", 1)[0]
        for name, number in fields.items():
            assert re.search(rf"\b{name} = {number};", body), f"{message}.{name} is not {number}"


def test_a_killed_store_comes_back_to_what_its_clients_go_on_with(tmp_path: Path) -> None:
    """As a process of its own: started with a ready descriptor, killed while a client puts, started again over the same memfd."""

    async def start(node: Node) -> asyncio.subprocess.Process:
        read, write = os.pipe()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "shoal_objectstore", "--node-dir", str(node.dir), "--node-id", node.node_id.hex(), "--secrets-dir", str(tmp_path),
            "--ready-fd", str(write), pass_fds=[write], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        os.close(write)
        ready = json.loads(await asyncio.to_thread(os.read, read, 4096))
        os.close(read)
        assert ready["address"] == str(node.dir / "store.sock"), ready
        return process

    async def main() -> None:
        node = Node(1, tmp_path, 64 * MIB)
        await node.raylet.start()
        first = await start(node)
        client = await asyncio.to_thread(Client, node, 1)
        kept = [await asyncio.to_thread(client.put, bytes([n]) * 400_000) for n in range(20)]
        first.kill()
        await first.wait()
        for location in kept[10:]:
            client.arena.free(*location)
        again = [client.arena.put(bytes([n]) * 400_000) for n in range(10, 20)]
        second = await start(node)
        for n, location in enumerate(kept[:10] + again):
            assert bytes(memoryview(client.arena.get(*location))[-1:]) == bytes([n])
        client.close()
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(node.dir / "store.sock"))
        client.frames = BlockingFrames(sock)
        client.frames.send(Type.HELLO, pack_hello(bytes(16), node.node_id, kind=PeerKind.WORKER))
        client.frames.expect(Type.HELLO)
        more = [await asyncio.to_thread(client.put, bytes(3_000_000)) for _ in range(5)]
        async with node.stub() as stub:
            check = await stub.Check(pb.Empty())
            assert check.ok, check.faults
            assert (await stub.List(pb.ListRequest())).total == len(kept[:10] + again + more)
        second.terminate()
        assert await second.wait() == 0
        assert not (node.dir / "store.sock").exists()
        client.close()
        await node.raylet.close()

    asyncio.run(main())


def test_a_store_without_a_raylet_says_so(tmp_path: Path) -> None:
    make_secret_file(tmp_path / "node.secret")
    read, write = os.pipe()
    code = "import sys; from shoal_objectstore import join; join.CONNECT_S = 0.2; from shoal_objectstore.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code,
         "--node-dir", str(tmp_path), "--node-id", "00" * 16, "--secrets-dir", str(tmp_path), "--ready-fd", str(write)],
        pass_fds=[write], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 1
    assert f"no raylet answers at {tmp_path}/raylet.sock" in json.loads(os.read(read, 4096))["error"]
    os.close(read)
