"""Deployments over HTTP."""

import asyncio
import base64
import json
import os
import socket
import threading
import time

import httpx
import pytest
from fastapi import Body, FastAPI, WebSocket
from pydantic import BaseModel
from shoal import serve
from shoal.serve.exceptions import ServeConfigError
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, StreamingResponse

pytestmark = pytest.mark.usefixtures("applications")

api = FastAPI()


class Item(BaseModel):
    name: str
    size: int = 1


@serve.deployment
@serve.ingress(api)
class Shop:
    def __init__(self, greeting="hello"):
        self.greeting = greeting

    @api.get("/greet")
    def greet(self, name: str = "you"):
        return f"{self.greeting} {name}"

    @api.get("/items/{item_id}")
    async def item(self, item_id: int):
        return {"id": item_id, "by": self.greeting}

    @api.post("/items", status_code=201)
    async def add(self, item: Item) -> Item:
        return item

    @api.get("/lines")
    async def lines(self):
        async def make():
            for i in range(5):
                yield f"line {i}\n"
                await asyncio.sleep(0)

        return StreamingResponse(make(), media_type="text/plain")

    @api.get("/fail")
    async def fail(self):
        raise ValueError("secret")

    @api.websocket("/talk")
    async def talk(self, socket: WebSocket):
        await socket.accept()
        while (text := await socket.receive_text()) != "bye":
            await socket.send_text(f"{self.greeting} {text}")
        await socket.close(4001)


@api.get("/outside")
def outside(x: int = Body(default=3)):
    return x


@serve.deployment(max_ongoing_requests=100)
class Plain:
    async def __call__(self, request: Request):
        kind = request.query_params.get("kind", "text")
        if kind == "body":
            return await request.body()
        if kind == "stream":
            return StreamingResponse((b"x" * 1000 for _ in range(1000)), media_type="application/x")
        if kind == "sleep":
            await asyncio.sleep(float(request.query_params["s"]))
        return {
            "text": "plain text", "json": {"a": [1, None, "ü"]}, "bytes": b"\x00\x01", "sleep": "slept", "model": Item(name="n"),
            "response": JSONResponse({"x": 1}, status_code=418, headers={"x-own": "yes"}), "redirect": RedirectResponse("/elsewhere"),
            "headers": dict(request.headers), "path": [request.url.path, request.scope["root_path"], request.method, str(request.client is not None)],
            "none": None,
        }[kind]  # fmt: skip


def test_what_is_returned_becomes_a_response(client):
    serve.run(Plain.bind())
    answer = client.get("/")
    assert (answer.status_code, answer.text, answer.headers["content-type"]) == (200, "plain text", "text/plain; charset=utf-8")
    assert client.get("/?kind=json").json() == {"a": [1, None, "ü"]}
    assert client.get("/?kind=bytes").content == b"\x00\x01"
    assert client.get("/?kind=model").json() == {"name": "n", "size": 1}
    assert client.get("/?kind=none").text == "null"
    answer = client.get("/?kind=response")
    assert (answer.status_code, answer.json(), answer.headers["x-own"]) == (418, {"x": 1}, "yes")
    assert client.get("/?kind=redirect").status_code == 307
    body = os.urandom(3 << 20)
    assert client.post("/?kind=body", content=body).content == body
    assert client.get("/?kind=stream").content == b"x" * 1_000_000
    assert client.post("/some/path?kind=path").json() == ["/some/path", "", "POST", "True"]


def test_request_ids_are_taken_over_or_made(client):
    serve.run(Plain.bind())
    assert client.get("/", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    assert client.get("/").headers["x-request-id"] != client.get("/").headers["x-request-id"]


def test_plain_functions_and_generators_answer_requests(client):
    @serve.deployment
    def count(request):
        for i in range(int(request.query_params["n"])):
            yield f"{i},"

    @serve.deployment
    class NoRequest:
        def __call__(self):
            return "nothing asked"

    serve.run(count.bind(), name="count", route_prefix="/count")
    serve.run(NoRequest.bind(), name="none", route_prefix="/none")
    assert client.get("/count?n=300").text == "".join(f"{i}," for i in range(300))
    assert client.get("/none").text == "nothing asked"


def test_fastapi_ingress(client):
    serve.run(Shop.bind("hi"), route_prefix="/shop")
    assert client.get("/shop/greet?name=Ann").json() == "hi Ann"
    assert client.get("/shop/items/7").json() == {"id": 7, "by": "hi"}
    answer = client.post("/shop/items", json={"name": "pen", "size": 3})
    assert (answer.status_code, answer.json()) == (201, {"name": "pen", "size": 3})
    assert client.post("/shop/items", json={"size": "x"}).status_code == 422
    assert client.get("/shop/items/seven").status_code == 422
    assert client.get("/shop/lines").text == "".join(f"line {i}\n" for i in range(5))
    assert client.get("/shop/outside").json() == 3
    assert client.get("/shop/nothing").status_code == 404
    failed = client.get("/shop/fail")
    assert failed.status_code == 500
    assert "secret" not in failed.text
    paths = client.get("/shop/openapi.json").json()["paths"]
    assert [p["name"] for p in paths["/greet"]["get"]["parameters"]] == ["name"]


def test_streams_arrive_as_they_are_made(client, tmp_path):
    @serve.deployment
    class Slow:
        async def __call__(self, request):
            async def make():
                yield "first"
                while not os.path.exists(tmp_path / "go"):
                    await asyncio.sleep(0.005)
                yield "second"

            return StreamingResponse(make())

    serve.run(Slow.bind())
    with client.stream("GET", "/") as answer:
        parts = answer.iter_text()
        assert next(parts) == "first"
        (tmp_path / "go").touch()
        assert "".join(parts) == "second"


def test_routes_and_health(client):
    serve.run(Plain.bind(), name="one", route_prefix="/one")
    serve.run(Plain.bind(), name="two", route_prefix="/one/two")
    serve.run(Plain.bind(), name="hidden", route_prefix=None)
    assert client.get("/-/healthz").text == "success"
    assert client.get("/-/routes").json() == {"/one/two": "two", "/one": "one"}
    assert client.get("/one/two/x?kind=path").json()[:2] == ["/one/two/x", "/one/two"]
    assert client.get("/one/twofold?kind=path").json()[:2] == ["/one/twofold", "/one"]
    assert client.get("/onetwo").status_code == 404
    assert client.get("/-/nothing").status_code == 404
    with pytest.raises(ServeConfigError, match="taken by application 'one'"):
        serve.run(Plain.bind(), name="three", route_prefix="/one")
    serve.delete("one")
    assert client.get("/one").status_code == 404
    assert client.get("/one/two").status_code == 200


def test_errors_of_the_code_are_500_without_its_text(client):
    @serve.deployment
    def broken(request):
        raise ValueError("secret")

    @serve.deployment
    def unsaid(request):
        return object()

    serve.run(broken.bind(), name="a", route_prefix="/a")
    serve.run(unsaid.bind(), name="b", route_prefix="/b")
    for path in ("/a", "/b"):
        answer = client.get(path)
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")


def test_a_full_queue_is_503(client, address, wait_until, tmp_path):
    @serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
    class Gate:
        async def __call__(self, request):
            while not os.path.exists(tmp_path / "go"):
                await asyncio.sleep(0.005)
            return "open"

    serve.run(Gate.bind())

    async def ask():
        async with httpx.AsyncClient(base_url=address, timeout=30) as many:
            asked = [asyncio.ensure_future(many.get("/")) for _ in range(6)]
            while sum(one.done() for one in asked) < 4:
                await asyncio.sleep(0.005)
            (tmp_path / "go").touch()
            return [answer.status_code for answer in await asyncio.gather(*asked)], [one.result().text for one in asked if one.result().status_code == 503]

    statuses, texts = asyncio.run(ask())
    assert sorted(statuses) == [200, 200, 503, 503, 503, 503]
    assert "max_queued_requests=1" in texts[0]


def test_a_client_that_goes_away_cancels_its_request(address, tmp_path, wait_until):
    @serve.deployment
    class Patient:
        async def __call__(self, request):
            (tmp_path / "begun").touch()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                (tmp_path / "cancelled").touch()
                raise

    serve.run(Patient.bind())
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until((tmp_path / "begun").exists, what="the request at the replica")
    wait_until((tmp_path / "cancelled").exists, what="the CancelledError in the replica")


def test_a_client_that_goes_away_ends_its_stream(address, tmp_path, wait_until):
    @serve.deployment
    class Endless:
        async def __call__(self, request):
            async def make():
                try:
                    while True:
                        yield b"x" * 1000
                        await asyncio.sleep(0)
                finally:
                    (tmp_path / "closed").touch()

            return StreamingResponse(make())

    serve.run(Endless.bind())
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
    wait_until((tmp_path / "closed").exists, what="the generator's end")


def websocket_handshake(address, path):
    host, port = address.removeprefix("http://").split(":")
    raw = socket.create_connection((host, int(port)), timeout=20)
    key = base64.b64encode(os.urandom(16)).decode()
    raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode())  # fmt: skip
    return raw


def test_websockets(address):
    from websockets.sync.client import connect

    serve.run(Shop.bind("hi"), route_prefix="/shop")
    with connect(address.replace("http", "ws") + "/shop/talk") as talk:
        for name in ("Ann", "Ben"):
            talk.send(name)
            assert talk.recv(timeout=20) == f"hi {name}"
        talk.send("bye")
        from websockets.exceptions import ConnectionClosed

        with pytest.raises(ConnectionClosed) as closed:
            talk.recv(timeout=20)
    assert closed.value.rcvd.code == 4001
    with websocket_handshake(address, "/shop/nothing") as raw:
        assert raw.recv(1000).startswith(b"HTTP/1.1 403")


def test_composition_and_streams_behind_http(client):
    @serve.deployment
    class Words:
        async def split(self, text):
            for word in text.split():
                yield word

    @serve.deployment
    class Front:
        def __init__(self, words):
            self.words = words

        async def __call__(self, request):
            text = (await request.body()).decode()
            return [word async for word in self.words.options(stream=True).split.remote(text)]

    serve.run(Front.bind(Words.bind()))
    assert client.post("/", content="to be or not").json() == ["to", "be", "or", "not"]


def test_many_connections_at_once(address):
    serve.run(Plain.options(num_replicas=2).bind())

    async def ask():
        async with httpx.AsyncClient(base_url=address, timeout=30) as many:
            return await asyncio.gather(*(many.get("/?kind=json") for _ in range(200)))

    assert {answer.status_code for answer in asyncio.run(ask())} == {200}


def test_multiplexed_models_are_named_by_a_header(client):
    @serve.deployment
    class Models:
        async def __call__(self, request):
            return serve.get_multiplexed_model_id()

    serve.run(Models.bind())
    assert client.get("/", headers={"serve_multiplexed_model_id": "m7"}).text == "m7"


@pytest.fixture
def strict(cluster):
    """Serve with a time limit and a limit for bodies, in place of the module's."""
    serve.shutdown()
    serve.start(http_options={"port": 0, "request_timeout_s": 0.3, "max_body_bytes": 1000})
    yield serve.http_address()
    serve.shutdown()
    serve.start(http_options={"port": 0})


def test_limits_of_time_and_size(strict):
    serve.run(Plain.bind())
    with httpx.Client(base_url=strict, timeout=30) as client:
        start = time.monotonic()
        assert client.get("/?kind=sleep&s=30").status_code == 408
        assert time.monotonic() - start < 10
        assert client.post("/?kind=body", content=b"x" * 1001).status_code == 413
        assert client.post("/?kind=body", content=(b"x" * 100 for _ in range(11))).status_code == 413
        assert client.post("/?kind=body", content=b"x" * 1000).status_code == 200


def test_a_port_in_use_is_said(cluster):
    serve.shutdown()
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(serve.RayServeException, match="the port is in use"):
                serve.start(http_options={"port": taken.getsockname()[1]})
        assert serve.status().proxies == {}
    finally:
        serve.start(http_options={"port": 0})
    with pytest.raises(ServeConfigError, match=r"Serve runs with http_options port=0; call serve.shutdown\(\)"):
        serve.start(http_options={"port": 1})


def test_requests_from_threads_are_answered_in_order_of_each(client):
    @serve.deployment(max_ongoing_requests=20)
    def echo(request):
        return request.query_params["x"]

    serve.run(echo.bind())
    wrong = []

    def ask(name):
        wrong.extend(i for i in range(20) if client.get(f"/?x={name}{i}").text != f"{name}{i}")

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert json.loads(client.get("/-/routes").text) == {"/": "default"}
