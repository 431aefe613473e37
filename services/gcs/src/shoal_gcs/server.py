"""The server: storage opened, port bound, service running, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from shoal_base.auth import AioServerInterceptor, Secrets, make_secret_file
from shoal_base.grpc_options import QUIET

from .config import Config
from .leadership import Candidate, GaveUp, Term, TermKeeper
from .raylets import MAX_MESSAGE_BYTES, Contract, installed_contract
from .service import USER_METHODS, Service, handlers
from .storage import Backend, Claim, Led, Opened, StorageError, Writer, open_backend
from .v1.calls import LEADER_KEY

STOP_GRACE_S = 0.5
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 1_000_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.keepalive_permit_without_calls", 1),
    *QUIET,
]
_log = logging.getLogger(__name__)


class CannotStart(Exception):
    """Why, in one sentence for the person who started it."""


class _Door(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Before this store leads, every call is told who does."""

    def __init__(self) -> None:
        self.inner: grpc.GenericRpcHandler | None = None
        self.leader = ""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if self.inner is not None:
            return self.inner.service(details)
        return grpc.stream_stream_rpc_method_handler(self._send_on)

    async def _send_on(self, _: object, context: Any) -> None:
        leader = self.leader
        told = f"this control store stands by; {leader} leads" if leader else "this control store does not lead yet"
        await context.abort(grpc.StatusCode.UNAVAILABLE, told, trailing_metadata=((LEADER_KEY, leader),) if leader else ())


class Server:
    """`await start()`, then `await stopped()`, then `await close()`. `on_standing_by` is called when `start` finds that another one leads."""

    def __init__(
        self, config: Config, *, backend: Backend | None = None, contract: Contract | None = None, on_standing_by: Callable[[Led], None] | None = None
    ) -> None:
        self.config = config
        self.address = ""
        self.failure: Exception | None = None
        self._backend = backend
        self._contract = contract
        self._on_standing_by = on_standing_by
        self._end = asyncio.Event()
        self._door = _Door()
        self._server: grpc.aio.Server | None = None
        self._writer: Writer | None = None
        self._keeper: TermKeeper | None = None
        self.service: Service | None = None

    async def start(self) -> None:
        """Leads when it returns. Raises CannotStart; then nothing is left open, and nothing stored was discarded. Raises GaveUp after a `stop`."""
        try:
            await self._start()
        except (CannotStart, GaveUp):
            await self.close()
            raise

    def stop(self) -> None:
        self._end.set()

    async def stopped(self) -> None:
        """Raises StorageError when the storage failed for good."""
        await self._end.wait()
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(STOP_GRACE_S)
        if self.service is not None:
            await self.service.close()
        if self._keeper is not None:
            await asyncio.to_thread(self._keeper.stop)
        if self._writer is not None:
            await self._writer.close()
        elif self._backend is not None:
            self._backend.close()

    async def _start(self) -> None:
        config = self.config
        try:
            secrets = Secrets(node=make_secret_file(config.secrets_dir / "node.secret"), user=make_secret_file(config.secrets_dir / "user.token"))
        except Exception as error:
            raise CannotStart(f"secrets in {config.secrets_dir}: {error}") from error
        check_port(config.host, config.port)
        try:
            backend = self._backend = self._backend or open_backend(config.storage, config.durability)
            opened, term = await self._lead(backend, secrets) if backend.shared else (await self._open_alone(backend), Term.endless())
        except StorageError as error:
            raise CannotStart(str(error)) from error
        self._writer = Writer(backend, self._storage_failed)
        self.service = service = Service(config, opened, self._writer, self._contract or installed_contract(), secrets.node, term)
        if backend.shared:
            self._keep_term(backend, term, service)
        try:
            service.start()
        except DecodeError as error:
            where = config.storage.partition("@")[2] or config.storage
            raise CannotStart(f"storage {where}: a record is damaged ({error}); restore a backup, or give another storage") from error
        self._door.inner = handlers(service)
        await self._listen(secrets)
        service.tell_raylets(self.address)

    async def _open_alone(self, backend: Backend) -> Opened:
        if self.config.standby:
            raise CannotStart(f"a standby needs storage that its head shares, redis://…; {backend.name} can be opened by one process only")
        return await asyncio.to_thread(backend.open, os.urandom(16), expected=self.config.cluster_id)

    async def _lead(self, backend: Backend, secrets: Secrets) -> tuple[Opened, Term]:
        """Listens first: others are told this very address, and until this store leads it tells them who does."""
        config = self.config
        await self._listen(secrets)
        claim = Claim(self.address, config.head_term_s)
        try:
            return await Candidate(backend, claim, stand_by=config.standby, expected=config.cluster_id, on_led=self._led).lead(self._end)
        except Led as led:
            raise CannotStart(f"{led}; start this one with --standby, end that one, or give another ?name= for another cluster") from led

    def _led(self, led: Led) -> None:
        self._door.leader = led.address
        if self.config.standby and self._on_standing_by is not None:
            self._on_standing_by(led)

    def _keep_term(self, backend: Backend, term: Term, service: Service) -> None:
        loop = asyncio.get_running_loop()

        def on_loop(function: Callable[[Any], None]) -> Callable[[Any], None]:
            def call(argument: Any) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: it ends already
                    loop.call_soon_threadsafe(function, argument)

            return call

        self._keeper = TermKeeper(backend, term, on_loop(service.stand_by_changed), on_loop(self._storage_failed))
        self._keeper.start()

    async def _listen(self, secrets: Secrets) -> None:
        if self._server is not None:
            return
        self._server = grpc.aio.server(interceptors=[AioServerInterceptor(secrets, USER_METHODS)], options=_OPTIONS)
        self._server.add_generic_rpc_handlers((self._door,))
        self.address = self._bind(self._server)
        await self._server.start()

    def _bind(self, server: grpc.aio.Server) -> str:
        host, port = self.config.host, self.config.port
        shown = f"[{host}]" if ":" in host else host
        try:
            bound = server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError as error:
            raise CannotStart(f"{shown}:{port} cannot be listened on: {error}") from error
        if not bound:
            raise CannotStart(f"{shown}:{port} cannot be listened on")
        return f"{shown}:{bound}"

    def _storage_failed(self, error: StorageError) -> None:
        if self.failure is None:
            _log.error("the storage failed for good, so this control store ends: %s", error)
            self.failure = error
            self.stop()


def check_port(host: str, port: int) -> None:
    """Says plainly what gRPC says at length. Before the storage is opened, so that a second start by mistake does not fence the first."""
    if not 0 <= port < 65536:
        raise CannotStart(f"port {port}: choose 0 (any free one) to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except socket.gaierror as error:
            raise CannotStart(f"host {host!r} is not known: {error.strerror}; give an address of this machine") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise CannotStart(f"port {port} on {host} is taken; choose another with --port, or stop who listens there") from error
            raise CannotStart(f"{host}:{port} cannot be listened on: {error.strerror}; choose another host or port") from error
