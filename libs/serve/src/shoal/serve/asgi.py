"""Requests as they travel from proxy to replica, and how a replica answers them."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

from .stream import Stream


class HttpMeta(NamedTuple):
    """A request without its body. Plain values only: it is pickled for every request."""

    kind: str  # http or websocket
    method: str
    scheme: str
    http_version: str
    path: str
    raw_path: bytes
    query_string: bytes
    root_path: str
    headers: list[tuple[bytes, bytes]]
    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    subprotocols: list[str]
    request_id: str
    route: str
    model_id: str


class HttpAnswer(NamedTuple):
    """The whole answer, or its start: then `stream_id` is not 0, and the other parts are pulled."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    stream_id: int
    done: bool


def scope_of(meta: HttpMeta) -> dict[str, Any]:
    """The ASGI scope of a request."""
    scope: dict[str, Any] = {
        "type": meta.kind, "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": meta.http_version, "scheme": meta.scheme, "path": meta.path,
        "raw_path": meta.raw_path, "query_string": meta.query_string, "root_path": meta.root_path, "headers": meta.headers, "client": meta.client,
        "server": meta.server, "state": {}, "extensions": {},
    }  # fmt: skip
    if meta.kind == "websocket":
        scope["subprotocols"] = meta.subprotocols
    else:
        scope["method"] = meta.method
    return scope


class Receive:
    """The ASGI `receive` of a request whose body is there already."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> dict[str, Any]:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        # The proxy cancels the whole call when the client goes; until then there is nothing to be told.
        await asyncio.get_running_loop().create_future()
        raise AssertionError("unreachable")


class Send:
    """The ASGI `send` of one HTTP request: gathers a short answer, turns into a stream when the application sends a first part of several."""

    def __init__(self) -> None:
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self.started = False
        self.complete = False
        self.body = b""
        self.stream: Stream | None = None
        self.first = asyncio.get_running_loop().create_future()  # done when the kind of the answer is known

    async def __call__(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self.started = True
            self.status = message["status"]
            self.headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        elif kind == "http.response.body":
            body, more = bytes(message.get("body", b"")), bool(message.get("more_body", False))
            if self.stream is not None:
                if body:
                    await self.stream.put(body)
                if not more:
                    self.complete = True
                    self.stream.end()
            elif not more:
                self.body, self.complete = body, True
                self._know()
            else:
                self.stream = Stream()
                if body:
                    await self.stream.put(body)
                self._know()

    def _know(self) -> None:
        if not self.first.done():
            self.first.set_result(None)


def plain_answer(result: Any) -> HttpAnswer | None:
    """What a deployment returned, as an answer: text, bytes, a finished Starlette response, or anything that JSON can say. None: it needs the ASGI way."""
    if type(result) is str:
        return HttpAnswer(200, [(b"content-length", b"%d" % len(body := result.encode())), (b"content-type", b"text/plain; charset=utf-8")], body, 0, True)
    if isinstance(result, bytes | bytearray | memoryview):
        body = bytes(result)
        return HttpAnswer(200, [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/octet-stream")], body, 0, True)
    from starlette.responses import Response

    if isinstance(result, Response):
        if getattr(result, "body_iterator", None) is None and type(result).__call__ is Response.__call__ and result.background is None:
            return HttpAnswer(result.status_code, list(result.raw_headers), bytes(result.body), 0, True)
        return None
    body = _json(result)
    return HttpAnswer(200, [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")], body, 0, True)


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError):
        pass
    from fastapi.encoders import jsonable_encoder

    try:
        encoded = jsonable_encoder(value, custom_encoder=_numpy_encoders(value))
    except Exception as error:
        raise TypeError(f"the deployment returned {type(value).__name__}, which is neither text, bytes, a Starlette response nor JSON: {error}") from None
    return json.dumps(encoded, ensure_ascii=False, separators=(",", ":")).encode()


def _numpy_encoders(value: Any) -> dict[Any, Any]:
    import sys

    numpy = sys.modules.get("numpy")
    return {numpy.ndarray: lambda a: a.tolist(), numpy.generic: lambda n: n.item()} if numpy is not None else {}
