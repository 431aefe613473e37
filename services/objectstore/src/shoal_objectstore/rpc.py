"""The contract `shoal.objectstore.v1.ObjectStore`, on the node's own socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
from shoal_base.auth import AioServerInterceptor, Secrets
from shoal_base.errors import Code
from shoal_base.grpc_options import QUIET
from shoal_base.wire import Pull

from ._arena import ArenaError
from .events import Kind
from .peer import PeerFailed
from .pulls import Answer, Origin
from .v1 import objectstore_pb2 as pb
from .v1 import objectstore_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from ._arena import Buffer
    from .journal import Location
    from .server import ObjectStore

DEFAULT_PULL_S = 60.0
# Limit: records of one List.
MAX_LIST = 100_000
# Limit: objects of one Pin or Restore, events of one message.
MAX_HELD, MAX_EVENTS = 10_000, 1000
MIN_LOOK_S = 0.05

_STATUS = {
    Code.OUT_OF_DISK: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.ARENA_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.OBJECT_FREED: grpc.StatusCode.NOT_FOUND,
    Code.OBJECT_LOST: grpc.StatusCode.DATA_LOSS,
    Code.FETCH_TIMED_OUT: grpc.StatusCode.DEADLINE_EXCEEDED,
}

# Figures that StatsReply has under the same name.
_STATS = (
    "capacity_bytes", "sealed_bytes", "lent_bytes", "clients", "pulled_bytes", "pushed_bytes", "waiting", "resident_bytes", "waiting_bytes", "created_bytes",
    "doomed_bytes", "copies_bytes", "clean_bytes", "on_disk", "on_disk_bytes", "disk_file_bytes", "spilled", "spilled_bytes", "restored", "restored_bytes",
    "gets", "get_bytes", "pulled",
)  # fmt: skip

_FIGURES = {
    "capacity_bytes": ("gauge", "what the arena may hold"),
    "resident_bytes": ("gauge", "pages of the arena that are in memory"),
    "free_warm_bytes": ("gauge", "resident pages that are lent to nobody"),
    "sealed_bytes": ("gauge", "bytes of readable objects"),
    "sealed": ("gauge", "readable objects"),
    "created_bytes": ("gauge", "bytes of objects being written"),
    "doomed_bytes": ("gauge", "bytes of freed objects that somebody still maps"),
    "lent_bytes": ("gauge", "pages lent to clients"),
    "lent_free_bytes": ("gauge", "of those, the part in which nothing lives"),
    "clients": ("gauge", "attached processes, this one included"),
    "puts": ("gauge", "objects put by the processes that live now"),
    "put_bytes": ("gauge", "their bytes"),
    "gets": ("gauge", "reads without a copy by the processes that live now"),
    "get_bytes": ("gauge", "their bytes"),
    "pulled": ("counter", "objects brought from other nodes"),
    "pulled_bytes": ("counter", "their bytes"),
    "pushed": ("counter", "objects sent to other nodes"),
    "pushed_bytes": ("counter", "their bytes"),
    "pulling": ("gauge", "objects on their way here"),
    "pulling_bytes": ("gauge", "their bytes"),
    "pulls_queued": ("gauge", "objects that wait to be brought here"),
    "copies": ("gauge", "objects here whose primary copy is on another node or on disk"),
    "copies_bytes": ("gauge", "their bytes"),
    "copies_forgotten": ("counter", "copies dropped because nobody who was told of them may live, and nobody read them"),
    "waiting": ("gauge", "requests that wait for space"),
    "waiting_bytes": ("gauge", "their bytes"),
    "reclaimed": ("counter", "dead processes whose things were taken back"),
    "orphans": ("counter", "objects freed because their owner's process or node was dead"),
    "told_elsewhere": ("gauge", "objects that stores of other nodes are still to be told of"),
    "clean": ("gauge", "objects that are in the arena and on disk"),
    "clean_bytes": ("gauge", "their bytes"),
    "on_disk": ("gauge", "objects that are on disk alone"),
    "on_disk_bytes": ("gauge", "their bytes"),
    "disk_file_bytes": ("gauge", "what the files of spilled objects take"),
    "disk_files": ("gauge", "how many files that are"),
    "spilled": ("counter", "objects written to disk"),
    "spilled_bytes": ("counter", "their bytes"),
    "restored": ("counter", "objects read back from disk"),
    "restored_bytes": ("counter", "their bytes"),
    "spill_failures": ("counter", "files that no place took"),
    "remote_files": ("gauge", "files of spilled objects on remote file systems"),
    "remote_file_bytes": ("gauge", "their bytes"),
    "remote_failures": ("counter", "writes and reads that a remote file system did not do, after several attempts"),
    "remote_unwanted": ("gauge", "files there that are to be removed"),
    "remote_moved_bytes": ("counter", "bytes of living objects that were moved out of files in which most had died"),
}


def render_metrics(figures: dict[str, int]) -> str:
    """Prometheus text."""
    lines = []
    for name, (kind, doc) in _FIGURES.items():
        full = f"shoal_objectstore_{name}" + ("_total" if kind == "counter" else "")
        lines += [f"# HELP {full} {doc}", f"# TYPE {full} {kind}", f"{full} {figures[name]}"]
    full = "shoal_objectstore_fragmentation"
    lines += [f"# HELP {full} the part of lent pages in which nothing lives", f"# TYPE {full} gauge"]
    lines.append(f"{full} {figures['lent_free_bytes'] / (figures['lent_bytes'] or 1):.4f}")
    return "\n".join(lines) + "\n"


class Servicer(pb_grpc.ObjectStoreServicer):
    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def Stats(self, request: Any, context: Any) -> Any:
        f = self._store.figures()
        taken = {name: f[name] for name in _STATS}
        return pb.StatsReply(
            allocated_bytes=f["resident_bytes"] - f["free_warm_bytes"], free_bytes=f["capacity_bytes"] - f["resident_bytes"] + f["free_warm_bytes"],
            objects=f["sealed"] + f["doomed"], warm_bytes=f["free_warm_bytes"], fragmentation=f["lent_free_bytes"] / (f["lent_bytes"] or 1), **taken,
        )  # fmt: skip

    async def List(self, request: Any, context: Any) -> Any:
        limit = min(request.limit or 1000, MAX_LIST)
        objects, total = await asyncio.to_thread(self._store.keeper.store.objects, limit)
        records = [pb.ObjectRecord(slot=o[0], generation=o[1], size_bytes=o[2], state=o[3], creator=o[4], pins=o[5]) for o in objects]
        spiller = self._store.spiller
        for record, path in spiller.listing(limit - len(records)) if spiller is not None else ():
            records.append(pb.ObjectRecord(slot=record.slot, generation=record.generation, size_bytes=record.size, state="on disk", path=path))
        return pb.ObjectList(objects=records, total=total + (spiller.objects if spiller is not None else 0))

    async def Pull(self, request: Any, context: Any) -> Any:
        source = getattr(request, "from")
        if len(source.node_id) != 16 or len(source.object_id) != 20:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "node_id takes 16 bytes, object_id 20")
        timeout = request.timeout_ms / 1000 or DEFAULT_PULL_S
        pull = self._store.pulling.pull(Origin(source.node_id, source.slot, source.generation), source.object_id, source.size_bytes, request.address)
        try:
            answer = await asyncio.wait_for(pull, timeout)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"object {source.object_id.hex()} did not come from {request.address} within {timeout:g} s")
        if answer.code:
            await context.abort(_STATUS.get(Code(answer.code), grpc.StatusCode.UNAVAILABLE), answer.text)
        return pb.Location(
            object_id=source.object_id, node_id=self._store.node_id, slot=answer.slot, generation=answer.generation, size_bytes=source.size_bytes
        )

    async def Spill(self, request: Any, context: Any) -> Any:
        spiller = self._store.spiller
        if spiller is None:
            return await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this store was started without spilling")
        before = spiller.evicted_bytes
        why = await spiller.make_room(request.bytes, request.bytes)
        if why:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, why)
        return pb.SpillReply(bytes=max(0, spiller.evicted_bytes - before))

    async def Push(self, request: Any, context: Any) -> Any:
        timeout = request.timeout_ms / 1000 or DEFAULT_PULL_S
        location = (request.object.slot, request.object.generation)
        size = self._size(location)
        if size is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no object here in slot {location[0]} generation {location[1]}")
        object_id = request.object.object_id or bytes(20)
        try:
            answer = await self._store.push(Pull(0, object_id, size or 0, self._store.node_id, *location, ""), request.to, timeout)
        except PeerFailed as error:
            await context.abort(_STATUS.get(error.code, grpc.StatusCode.UNAVAILABLE), str(error))
        if answer.code:
            await context.abort(_STATUS.get(Code(answer.code), grpc.StatusCode.UNAVAILABLE), answer.text)
        return pb.Location(object_id=object_id, slot=answer.slot, generation=answer.generation, size_bytes=size)

    async def Pin(self, request: Any, context: Any) -> Any:
        pins = await self._hold(request, context)
        yield pb.PinReply(objects=[self._place(asked, pin) for asked, pin in zip(request.objects, pins, strict=True)])
        # Until whoever called leaves, or its process ends: the pins go with this frame.
        await asyncio.Event().wait()

    async def Restore(self, request: Any, context: Any) -> Any:
        pins = await self._hold(request, context)
        return pb.RestoreReply(objects=[self._place(asked, pin) for asked, pin in zip(request.objects, pins, strict=True)])

    async def _hold(self, request: Any, context: Any) -> list[Buffer]:
        if len(request.objects) > MAX_HELD:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{len(request.objects)} objects: at most {MAX_HELD} at once")
        pins: list[Buffer] = []
        timeout = request.timeout_ms / 1000 or DEFAULT_PULL_S
        try:
            async with asyncio.timeout(timeout):
                for asked in request.objects:
                    held = await self._bring_and_pin((asked.slot, asked.generation), asked.object_id or bytes(20))
                    if isinstance(held, Answer):
                        await context.abort(_STATUS.get(Code(held.code), grpc.StatusCode.UNAVAILABLE), held.text)
                    pins.append(cast("Buffer", held))
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"{len(pins)} of {len(request.objects)} objects were in memory within {timeout:g} s")
        return pins

    async def _bring_and_pin(self, location: Location, object_id: bytes) -> Buffer | Answer:
        """An object of this node, wherever it is; or why not."""
        while True:
            answer = await self._store.pulling.pull(Origin(self._store.node_id, *location), object_id, self._size(location) or 0, "")
            if answer.code:
                return answer
            with contextlib.suppress(ArenaError):  # dropped in this moment: once more
                return self._store.keeper.own.get(answer.slot, answer.generation)

    def _size(self, location: Location) -> int | None:
        """Of an object here, in memory or on disk; None: there is none."""
        spiller, store = self._store.spiller, self._store.keeper.store
        record = spiller.evicted(location) if spiller is not None else None
        if record is not None:
            return record.size
        return store.location(*location)[1] if store.sealed([location])[0] else None

    def _place(self, asked: Any, pin: Buffer) -> Any:
        slot, generation = pin.location
        return pb.Location(object_id=asked.object_id, node_id=self._store.node_id, slot=slot, generation=generation, size_bytes=pin.nbytes)

    async def Subscribe(self, request: Any, context: Any) -> Any:
        unknown = sorted(set(request.kinds) - {0, *Kind})
        if unknown:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"event kinds {unknown}: {', '.join(f'{k.value} {k.name}' for k in Kind)} exist")
        kinds = [Kind(kind) for kind in request.kinds if kind]
        woken = asyncio.Event()
        subscription = self._store.subscriptions.add(kinds, woken.set, max((request.interval_ms or 1000) / 1000, MIN_LOOK_S))
        if subscription is None:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{len(self._store.subscriptions)} subscribers are there already")
            return
        try:
            yield pb.Events()
            while True:
                await woken.wait()
                woken.clear()
                while subscription.waiting:
                    events, lost = subscription.take(MAX_EVENTS)
                    told = [pb.Event(kind=cast(Any, e.kind), slot=e.slot, generation=e.generation, size_bytes=e.size_bytes, where=e.where) for e in events]
                    yield pb.Events(events=told, lost=lost)
        finally:
            self._store.subscriptions.remove(subscription)

    async def Free(self, request: Any, context: Any) -> Any:
        self._store.frees.here(tuple((o.slot, o.generation) for o in request.objects if o.node_id in (b"", self._store.node_id)))
        return pb.Empty()

    async def ClientGone(self, request: Any, context: Any) -> Any:
        if not 0 < request.client < self._store.keeper.store.max_clients:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"client {request.client}: 1 to {self._store.keeper.store.max_clients - 1} are possible")
        await self._store.keeper.reclaim(request.client, *self._store.keeper.store.identity(request.client))
        return pb.Empty()

    async def Metrics(self, request: Any, context: Any) -> Any:
        return pb.MetricsReply(text=render_metrics(self._store.figures()))

    async def Check(self, request: Any, context: Any) -> Any:
        faults = await asyncio.to_thread(self._store.keeper.store.check)
        return pb.CheckReply(ok=not faults, faults=faults)


async def start_grpc(store: ObjectStore, secret: bytes, path: Path) -> grpc.aio.Server:
    """Serves at a Unix socket of mode 0600, to callers that sign with the node secret."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    server = grpc.aio.server(interceptors=[AioServerInterceptor(Secrets(node=secret, user=None), frozenset())], options=QUIET)
    pb_grpc.add_ObjectStoreServicer_to_server(Servicer(store), server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    os.chmod(path, 0o600)
    return server
