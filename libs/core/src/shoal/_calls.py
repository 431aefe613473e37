"""Calls to the raylet and, through it, to the control store: errors as exceptions of ours."""

from __future__ import annotations

import time
from typing import Any

from . import _runtime
from ._core.engine import CallError
from .exceptions import AuthenticationError, GetTimeoutError, RaySystemError, RpcError

# gRPC status codes, here by number so that grpc need not be imported.
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
RESOURCE_EXHAUSTED = 8
UNAVAILABLE = 14
UNAUTHENTICATED = 16

TIMEOUT_S = 30.0
# What this process has just created may be asked about before its creation has arrived; it is found within this.
CREATION_GRACE_S = 5.0


class CallFailed(RpcError):
    """A call that was answered with an error. `code` is the gRPC status code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.code)


def call(engine: Any, method: str, request: Any = None, timeout: float = TIMEOUT_S) -> bytes:
    """Sends a protobuf message (or none); returns the reply's bytes.

    Raises:
        CallFailed, GetTimeoutError, AuthenticationError, RaySystemError.
    """
    payload = b"" if request is None else request.SerializeToString()
    try:
        reply: bytes = engine.call(method, payload, timeout)
        return reply
    except CallError as error:
        code = getattr(error, "code", 2)
        text = getattr(error, "message", "") or str(error)
        if code == UNAUTHENTICATED:
            raise AuthenticationError(f"{method} was refused: {text}") from error
        if code == UNAVAILABLE:
            raise RaySystemError(f"{method}: the control store cannot be reached: {text}") from error
        raise CallFailed(f"{method} failed: {text}", code) from error
    except TimeoutError as error:
        raise GetTimeoutError(f"{method} was not answered within {timeout:g} s") from error


def ask(what: str, method: str, request: Any = None, timeout: float = TIMEOUT_S) -> bytes:
    """`call` on this process's connection; `what` names the public function in the error when there is none."""
    return call(_runtime.connected(what), method, request, timeout)


def call_once_known(engine: Any, method: str, request: Any, timeout: float = TIMEOUT_S) -> bytes:
    """A call about something whose creation this process may have sent just before: the two can pass each other on the way."""
    deadline = time.monotonic() + CREATION_GRACE_S
    pause = 0.002
    while True:
        try:
            return call(engine, method, request, timeout)
        except CallFailed as error:
            if error.code != NOT_FOUND or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 0.2)


def store_full(error: Exception, what: str) -> Exception:
    """What users see of the engine's ArenaFull and DiskFull: `what` found no room."""
    from ._core.engine import DiskFull
    from .exceptions import ObjectStoreFullError, OutOfDiskError

    return (OutOfDiskError if isinstance(error, DiskFull) else ObjectStoreFullError)(f"{what}: {error}")
