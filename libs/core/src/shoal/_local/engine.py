"""The engine of local mode: the real one for objects and references, connected to nobody; what it would submit runs here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from .._core.engine import TASK_STREAMING, Engine, ObjectRef, Payload
from .._serialization import NONE, serialize_error
from .._worker.executor import parse_extra
from ..exceptions import ActorDiedError
from .calls import CALL, CREATION, TASK, Call
from .control import LocalControlStore
from .executor import LocalActor, LocalAsyncActor, LocalExecutor

# Above every value: all of them lie with their owner, this process.
_INLINE = 1 << 60
_DEAD = 3
_ZERO = bytes(16)


class _Stream:
    """A generator's items, made when they are asked for."""

    def __init__(self, items: Any, done: ObjectRef[Any]) -> None:
        self.items = items
        self.done = done.task_id()


class LocalEngine(Engine):
    def __init__(self, node_dir: str, resources: dict[str, int], labels: dict[str, str]) -> None:
        super().__init__(worker_id=os.urandom(16), node_dir=node_dir, kind=0, inline_limit=_INLINE)
        self.store = LocalControlStore(self, resources, labels)
        self._tasks = LocalExecutor(self)
        self._classes: dict[bytes, int] = {}
        self._specs: list[Any] = []
        self._promised: dict[bytes, bytes] = {}  # task to what it is settled by
        self._streams: dict[bytes, _Stream] = {}
        self._creations: dict[bytes, Call] = {}
        self._actors: dict[bytes, LocalActor] = {}
        self._held: list[Any] = []

    # -- references whose values come later
    def _promise(self, name: str) -> ObjectRef[Any]:
        # A call of an actor that is nowhere: it "dies" with the value as its error, and the engine does all the rest.
        nobody = os.urandom(16)
        self.attach_actor(nobody, False)
        ref: ObjectRef[Any] = super().submit_actor(nobody, "", name, None, ())[0]
        self._promised[ref.task_id()] = nobody
        return ref

    def _settle(self, task_id: bytes, payload: Payload) -> None:
        nobody = self._promised.pop(task_id, None)
        if nobody is None or self.closed:
            return
        if payload.refs:
            # The engine counts references in values that it was given to put, but not in these.
            self._held.extend(payload.refs)
        self.actor_update(nobody, _DEAD, _ZERO, _ZERO, "", 0, 0, "", payload.to_bytes())

    # -- submitting
    def lease_class(self, spec: bytes) -> int:
        from shoal_raylet.v1 import raylet_pb2

        if spec not in self._classes:
            self._classes[spec] = len(self._specs)
            self._specs.append(raylet_pb2.LeaseClass.FromString(spec))
        return self._classes[spec]

    def submit(self, lease_class: int, function_id: bytes, name: str, args: Payload | None, deps: Sequence[tuple[int, ObjectRef[Any]]], num_returns: int = 1,
               max_retries: int = 3, flags: int = 0, depth: int = 0, backpressure: int = 0, extra: bytes = b"") -> list[ObjectRef[Any]]:  # fmt: skip
        spec = self._specs[lease_class]
        call = Call(
            self, TASK, name, args, deps, function_id=function_id, num_returns=num_returns, max_retries=max_retries, flags=flags, extra=extra,
            runtime_env=spec.runtime_env, resources=dict(spec.resources),
        )  # fmt: skip
        return self._run(self._tasks, call)

    def _run(self, executor: LocalExecutor, call: Call) -> list[ObjectRef[Any]]:
        if call.flags & TASK_STREAMING:
            done = self._promise(call.name)
            call.task_id = done.task_id()
            self._streams[call.task_id] = _Stream(executor.items(call), done)
            return [done]
        results = executor.run_call(call)
        return [self.put(payload) for payload in results[: call.num_returns]]

    def new_item(self, stream: _Stream) -> ObjectRef[Any] | None:
        payload = next(stream.items, None)
        if payload is not None:
            return self.put(payload)
        self._end_stream(stream)
        return None

    def next_item(self, task_id: bytes, index: int, timeout: float = -1.0) -> ObjectRef[Any] | None:
        stream = self._streams.get(task_id)
        return None if stream is None else self.new_item(stream)

    def stream_done(self, task_id: bytes) -> None:
        stream = self._streams.get(task_id)
        if stream is not None:
            self._end_stream(stream)

    def _end_stream(self, stream: _Stream) -> None:
        self._streams.pop(stream.done, None)
        with contextlib.suppress(ValueError):  # it is running: it ends itself
            stream.items.close()
        self._settle(stream.done, NONE)

    def cancel(self, task_id: bytes, force: bool, recursive: bool) -> None:
        """Only async calls and streams can still be running."""
        self.stream_done(task_id)
        for actor in list(self._actors.values()):
            if isinstance(actor, LocalAsyncActor) and actor.cancel(task_id):
                return

    # -- actors
    def creation_task(self, actor_id: bytes, function_id: bytes, name: str, args: Payload | None, deps: Sequence[tuple[int, ObjectRef[Any]]],
                      extra: bytes = b"", restartable: bool = False) -> bytes:  # fmt: skip
        self._creations[actor_id] = Call(self, CREATION, f"{name}.__init__", args, deps, function_id=function_id, actor_id=actor_id, extra=extra)
        return b""

    def create_actor(self, request: Any) -> None:
        """For the control store, which knows that the name is free."""
        record = request.actor
        creation = self._creations.pop(bytes(record.actor_id))
        creation.runtime_env = request.placement.runtime_env
        extra = parse_extra(creation.extra)
        kind = LocalAsyncActor if extra.asynchronous else LocalActor
        actor = self._actors[bytes(record.actor_id)] = kind(self, record, creation, extra)
        actor.create()

    def forget_creation(self, actor_id: bytes) -> None:
        self._creations.pop(actor_id, None)

    def actor(self, actor_id: bytes) -> LocalActor | None:
        return self._actors.get(actor_id)

    def actors(self) -> list[LocalActor]:
        return list(self._actors.values())

    def submit_actor(self, actor_id: bytes, method: str, name: str, args: Payload | None, deps: Sequence[tuple[int, ObjectRef[Any]]], num_returns: int = 1,
                     max_retries: int = 0, flags: int = 0, group: str = "", backpressure: int = 0, extra: bytes = b"") -> list[ObjectRef[Any]]:  # fmt: skip
        actor = self._actors.get(actor_id)
        if actor is None or actor.failure is not None:
            return self._refused(actor_id, actor, name, num_returns, flags)
        call = Call(
            self, CALL, name, args, deps, method=method, actor_id=actor_id, num_returns=num_returns, max_retries=max_retries, flags=flags, group=group,
            extra=extra, runtime_env=actor.creation.runtime_env,
        )  # fmt: skip
        if not isinstance(actor, LocalAsyncActor) or flags & TASK_STREAMING:
            return self._run(actor, call)
        refs = [self._promise(name) for _ in range(num_returns)]
        if refs:
            call.task_id = refs[0].task_id()
        ids = [ref.task_id() for ref in refs]

        def settle(payloads: Sequence[Payload]) -> None:
            for task_id, payload in zip(ids, payloads, strict=False):
                self._settle(task_id, payload)

        actor.start(call, settle)
        return refs

    def _refused(self, actor_id: bytes, actor: LocalActor | None, name: str, num_returns: int, flags: int) -> list[ObjectRef[Any]]:
        shown = actor_id.hex()
        failure = actor.failure if actor is not None else None
        payload = failure or serialize_error(ActorDiedError(f"The actor {shown} died: it is gone. The call was {name}.", shown))
        if flags & TASK_STREAMING:
            done = self._promise(name)
            self._streams[done.task_id()] = _Stream((p for p in (payload,)), done)
            return [done]
        return [self.put(payload) for _ in range(num_returns)]

    # -- control
    def call(self, method: str, payload: bytes, timeout: float = 30.0) -> bytes:
        return self.store.answer(method, payload, timeout)

    def call_async(self, method: str, payload: bytes) -> None:
        self.store.answer(method, payload, 0.0)

    def close(self) -> None:
        for actor in self.actors():
            actor.end("shutdown() was called.")
        for stream in list(self._streams.values()):
            self._end_stream(stream)
        super().close()
