"""A library's own commands and routes, found by their entry points."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from shoal._supervisor.directories import living_nodes

pytestmark = pytest.mark.timeout(90)

MODULE = """
import click
from shoal.ext import HttpRequest, HttpResponse, Router

@click.command()
def greet():
    "Greet."
    click.echo("hello from a library")

async def remember(request: HttpRequest) -> HttpResponse:
    await request.cluster.kv_put(request.params["key"].encode(), request.body, "greet")
    return HttpResponse(status=201)

async def recall(request: HttpRequest) -> HttpResponse:
    value = await request.cluster.kv_get(request.params["key"].encode(), "greet")
    nodes = await request.cluster.list("nodes")
    return HttpResponse({"value": value and value.decode(), "nodes": len(nodes)})

def routes(router: Router) -> None:
    router.add("PUT", "/api/greet/{key}", remember)
    router.add("GET", "/api/greet/{key}", recall)

def broken(router: Router) -> None:
    router.add("GET", "/outside", recall)
"""


@pytest.fixture
def library(tmp_path, monkeypatch):
    (tmp_path / "greet.py").write_text(MODULE)
    info = tmp_path / "greet-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greet\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[shoal.commands]\ngreet = greet:greet\n\n[shoal.http]\ngreet = greet:routes\nbroken = greet:broken\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


def test_commands_and_routes_of_a_library(home, library):
    assert "hello from a library" in home.cli("greet")
    assert "greet" in home.cli("--help")
    home.cli("start", "--head", "--port", "0", "--http-port", "0", "--num-cpus", "1")
    node = living_nodes(home.path)[0]
    token = Path(node.secrets_dir, "user.token").read_text().strip()

    def ask(method, path, body=None, header=f"Bearer {token}"):
        request = urllib.request.Request(f"http://{node.http_address}{path}", data=body, method=method, headers={"Authorization": header})
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()

    try:
        assert ask("PUT", "/api/greet/who", b"world")[0] == 201
        assert json.loads(ask("GET", "/api/greet/who")[1]) == {"value": "world", "nodes": 1}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask("GET", "/api/greet/who", header="Bearer wrong")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask("GET", "/outside")
        assert "the routes of broken (greet:broken) cannot be added" in Path(node.node_dir, "logs", "http.log").read_text()
    finally:
        home.cli("stop")
