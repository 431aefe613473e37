"""The raylets, as the control store calls them. It knows of them only their contract, whose messages the shell brings in.

Every call may be made twice: raylets start an incarnation once, and preparing, cancelling, killing are idempotent. So a call that broke is made again
until the node answers or is declared dead, and nobody has to guess what became of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
from shoal_base.grpc_options import QUIET

from .state import effects as do
from .state import events as on
from .state.events import BundleStep, StartStatus
from .v1.calls import EPOCH_KEY, Signature

SERVICE = "/shoal.raylet.v1.Raylet/"
CALL_TIMEOUT_S = 10.0
RETRY_FIRST_S = 0.05
RETRY_LONGEST_S = 1.0
PROBES = 3
PROBE_TIMEOUT_S = 1.0
PROBE_PAUSE_S = 0.1
MAX_CHANGES = 500  # Limit: bundle steps in one call
MAX_MESSAGE_BYTES = 512 << 20

_RETRIED = frozenset([grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.RESOURCE_EXHAUSTED])
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.default_authority", "shoal"),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # how long a connection may take to be made, in spite of its name
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    *QUIET,
]

_log = logging.getLogger(__name__)

Method = Callable[[Any, float | None], Awaitable[Any]]


class Contract(Protocol):
    """The module shoal_raylet.v1.raylet_pb2."""

    StartActorRequest: Any
    StartActorReply: Any
    LeaseClass: Any
    KillWorkerRequest: Any
    ChangeBundlesRequest: Any
    ChangeBundlesReply: Any
    FinishJobRequest: Any
    DrainRequest: Any
    HeadChangedRequest: Any
    AllowanceRequest: Any
    AllowanceReply: Any
    Empty: Any


def installed_contract() -> Contract | None:
    """None: shoal-raylet is not installed. Nodes, jobs, keys, channels and history work all the same; actors and groups wait."""
    try:
        return importlib.import_module("shoal_raylet.v1.raylet_pb2")
    except ImportError:
        return None


class Raylet:
    """One node's raylet. Calls end when it answers, or with `close`."""

    def __init__(
        self, node_id: bytes, target: str, contract: Contract, secret: bytes | None, post: Callable[[on.Event], None], epoch: int = 0
    ) -> None:
        self.node_id = node_id
        self._contract = contract
        self._post = post
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: dict[bytes, asyncio.Task[None]] = {}  # actor -> the call that a later one for it must wait for
        self._changes: deque[do.ChangeBundles] = deque()
        self._changing = False
        self._behind: dict[bytes, list[do.ChangeBundles]] = {}  # group -> its steps that wait for the answer to a patient one
        self._closed = False
        self._signature = Signature(secret)
        self._epoch = epoch
        # Raylets refuse calls of an epoch that they know to be over.
        self._from_epoch = ((EPOCH_KEY, str(epoch)),)
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        self._start_actor = self._method("StartActor", contract.StartActorReply)
        self._kill_worker = self._method("KillWorker", contract.Empty)
        self._change_bundles = self._method("ChangeBundles", contract.ChangeBundlesReply)
        self._finish_job = self._method("FinishJob", contract.Empty)
        self._drain = self._method("Drain", contract.Empty)
        self._head_changed = self._method("HeadChanged", contract.Empty)
        self._allowance = self._method("Allowance", contract.AllowanceReply)

    # -- effects

    def start_actor(self, effect: do.StartActor) -> None:
        placement, actor = effect.spec.placement, effect.actor
        contract = self._contract
        request = contract.StartActorRequest(
            actor_id=actor.actor_id,
            creation_task=effect.spec.creation_task,
            placement=contract.LeaseClass(
                resources=placement.resources,
                strategy=placement.strategy,
                node_id=placement.node_id,
                soft=placement.soft,
                placement_group_id=placement.placement_group_id,
                bundle_index=placement.bundle_index,
                label_selector=placement.label_selector,
                soft_label_selector=placement.soft_label_selector,
                runtime_env=placement.runtime_env,
                job_id=actor.job_id,
                name=actor.class_name,
                capture_child_tasks=placement.capture_child_tasks,
                final=0 <= actor.max_restarts <= actor.restarts,
            ),
            held=actor.resources,
            incarnation=effect.incarnation,
            owner_worker_id=actor.owner_worker_id,
            owner_node_id=actor.owner_node_id,
            detached=actor.detached,
            name=actor.name,
        )
        self._spawn(self._starting(actor.actor_id, effect.incarnation, request, self._last.get(actor.actor_id)))

    def kill_actor(self, effect: do.KillActor) -> None:
        request = self._contract.KillWorkerRequest(
            worker_id=effect.worker_id, actor_id=effect.actor_id, force=effect.force, reason=effect.reason, migrate=effect.migrate
        )
        actor_id = effect.actor_id
        task = self._spawn(self._until_done(self._kill_worker, request, f"kill actor {actor_id.hex()}"))
        self._last[actor_id] = task
        task.add_done_callback(lambda done: self._last.pop(actor_id) if self._last.get(actor_id) is done else None)

    async def told(self, actor_id: bytes, timeout_s: float) -> None:
        """Until the raylet has answered the last call about this actor, or the time is over."""
        last = self._last.get(actor_id)
        if last is not None:
            await asyncio.wait([last], timeout=timeout_s)

    def change_bundles(self, effect: do.ChangeBundles) -> None:
        self._changes.append(effect)
        if not self._changing:
            self._changing = True
            self._spawn(self._changing_bundles())

    def finish_job(self, job_id: bytes) -> None:
        self._spawn(self._until_done(self._finish_job, self._contract.FinishJobRequest(job_id=job_id), f"finish job {job_id.hex()}"))

    def drain(self, effect: do.DrainRaylet) -> None:
        request = self._contract.DrainRequest(reason=effect.reason, within_ms=effect.within_ms)
        self._spawn(self._until_done(self._drain, request, "drain"))

    def head_changed(self, address: str) -> None:
        request = self._contract.HeadChangedRequest(address=address, epoch=self._epoch)
        self._spawn(self._until_done(self._head_changed, request, "tell it of this head"))

    async def allowance(self, request: dict[str, Any], timeout_s: float) -> Any:
        """Asked once. Raises grpc.aio.AioRpcError."""
        return await self._allowance(self._contract.AllowanceRequest(**request), timeout_s)

    async def close(self) -> None:
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CALL_TIMEOUT_S)
        await self._channel.close()

    # -- inner works

    def _method(self, name: str, reply: Any) -> Method:
        call = self._channel.unary_unary(SERVICE + name, request_serializer=_serialize, response_deserializer=reply.FromString)

        async def signed(request: Any, timeout_s: float | None) -> Any:
            metadata = self._signature.metadata(SERVICE + name)
            try:
                return await call(request, timeout=timeout_s, metadata=metadata + self._from_epoch)
            except grpc.aio.AioRpcError as error:
                if not self._signature.adapt(metadata, error):
                    raise
            return await call(request, timeout=timeout_s, metadata=self._signature.metadata(SERVICE + name) + self._from_epoch)

        return signed

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _starting(self, actor_id: bytes, incarnation: int, request: Any, after: asyncio.Task[None] | None) -> None:
        if after is not None:
            await asyncio.wait([after])
        try:
            # No deadline: __init__ may take as long as it likes; the node's lease bounds the wait.
            reply = await self._retrying(self._start_actor, request, None)
        except grpc.aio.AioRpcError as error:
            await self._until_done(self._kill_worker, self._contract.KillWorkerRequest(actor_id=actor_id, force=True, reason="its start failed"), "kill")
            self._post(on.ActorStartAnswered(actor_id, incarnation, self.node_id, StartStatus.NO_RESOURCES, reason=f"StartActor failed: {_told(error)}"))
            return
        status = StartStatus(reply.status)
        self._post(on.ActorStartAnswered(actor_id, incarnation, self.node_id, status, reply.worker_id, reply.pid, reply.error, reply.reason, reply.code))

    async def _changing_bundles(self) -> None:
        """One call at a time, so that steps are done in order; what comes meanwhile goes with the next."""
        while self._changes:
            batch: list[do.ChangeBundles] = []
            while self._changes and len(batch) < MAX_CHANGES and not (batch and self._changes[0].wait_ms):
                effect = self._changes.popleft()
                if effect.group_id in self._behind:
                    self._behind[effect.group_id].append(effect)
                elif effect.wait_ms:
                    self._behind[effect.group_id] = []
                    self._spawn(self._changing_patiently(effect))
                else:
                    batch.append(effect)
            if batch:
                await self._change(batch)
        self._changing = False

    async def _changing_patiently(self, effect: do.ChangeBundles) -> None:
        """Others do not wait meanwhile, but for what follows of the same group."""
        await self._change([effect])
        for later in self._behind.pop(effect.group_id):
            self.change_bundles(later)

    async def _change(self, batch: list[do.ChangeBundles]) -> None:
        request = self._contract.ChangeBundlesRequest()
        for effect in batch:
            change = request.changes.add(step=int(effect.step), placement_group_id=effect.group_id)
            if effect.wait_ms:
                change.wait_ms = effect.wait_ms
            for bundle in effect.bundles:
                change.bundles.add(index=bundle.index, resources=bundle.resources)
        try:
            results = [(result.prepared, result.reason) for result in (await self._retrying(self._change_bundles, request)).results]
        except grpc.aio.AioRpcError as error:
            results = [(False, f"ChangeBundles failed: {_told(error)}")] * len(batch)
        for effect, (done, reason) in zip(batch, results, strict=False):
            if effect.step is not BundleStep.CANCEL or not self._changes:
                self._post(on.BundlesChanged(self.node_id, effect.step, effect.group_id, effect.attempt, done, reason))

    async def _until_done(self, method: Method, request: Any, what: str) -> None:
        try:
            await self._retrying(method, request)
        except grpc.aio.AioRpcError as error:
            _log.warning("node %s: %s: %s", self.node_id.hex()[:12], what, _told(error))

    async def _retrying(self, method: Method, request: Any, timeout_s: float | None = CALL_TIMEOUT_S) -> Any:
        """Ends with an answer, with an error that trying again does not mend, or when the node is given up (cancelled)."""
        pause = RETRY_FIRST_S
        while True:
            try:
                return await method(request, timeout_s)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RETRIED or self._closed:
                    raise
            self._post(on.NodeConnectionLost(self.node_id))
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_LONGEST_S)


class Raylets:
    """All of them, by node. `address_of` tells where one is."""

    def __init__(
        self, contract: Contract | None, secret: bytes | None, address_of: Callable[[bytes], tuple[str, str] | None], post: Callable[[on.Event], None],
        epoch: int = 0,
    ) -> None:  # fmt: skip
        self._contract = contract
        self._secret = secret
        self._address_of = address_of
        self._post = post
        self._epoch = epoch
        self._raylets: dict[bytes, Raylet] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing: set[bytes] = set()

    def get(self, node_id: bytes) -> Raylet | None:
        """None: the node is gone, or raylets cannot be called from this installation."""
        raylet = self._raylets.get(node_id)
        if raylet is None and self._contract is not None:
            where = self._address_of(node_id)
            if where is None:
                return None
            raylet = self._raylets[node_id] = Raylet(node_id, dial_target(*where), self._contract, self._secret, self._post, self._epoch)
        return raylet

    def forget(self, node_id: bytes) -> None:
        raylet = self._raylets.pop(node_id, None)
        if raylet is not None:
            self._spawn(raylet.close())

    def probe(self, node_id: bytes, address: str) -> None:
        if node_id not in self._probing:
            self._probing.add(node_id)
            self._spawn(self._probe(node_id, address))

    async def close(self) -> None:
        for node_id in list(self._raylets):
            self.forget(node_id)
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=CALL_TIMEOUT_S)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probe(self, node_id: bytes, address: str) -> None:
        """Only a refusal, several times, proves that nobody is there; silence proves nothing and is left to the lease."""
        try:
            for attempt in range(PROBES):
                if attempt:
                    await asyncio.sleep(PROBE_PAUSE_S)
                if not await refuses(address):
                    return
            self._post(on.NodeRefused(node_id))
        finally:
            self._probing.discard(node_id)


async def refuses(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):  # and not wait_for, which may lose the connection when it is cancelled as it comes
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return False


def dial_target(address: str, node_dir: str) -> str:
    """A raylet of this machine and user is reached by its Unix socket, without its TCP port between."""
    path = Path(node_dir, "raylet.grpc.sock") if node_dir else None
    if path is not None:
        with contextlib.suppress(OSError):
            status = path.lstat()
            if status.st_uid == os.getuid() and _listens(path):
                return f"unix:{path}"
    return address


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PROBE_TIMEOUT_S)
        return sock.connect_ex(str(path)) == 0


def _serialize(message: Any) -> bytes:
    return message.SerializeToString()  # type: ignore[no-any-return]


def _told(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"
