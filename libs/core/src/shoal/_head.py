"""The head's HTTP server, as commands and programs ask it: which one, with which token, and what its answers mean."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from ._runtime import ADDRESS_VARIABLE
from ._supervisor.directories import NodeFile, base_directory, living_nodes, read_node

TOKEN_FILE_VARIABLE = "SHOAL_TOKEN_FILE"
# Asking every node takes as long as the slowest; the head itself gives up on one after 10 s.
TIMEOUT_S = 30.0


class HeadError(Exception):
    """The head could not be asked, or answered with an error."""


class HeadUnreachable(HeadError):
    """No running cluster was found, or it did not answer."""


class HeadRefused(HeadError):
    """The head answered that it will not, and why."""


class Head:
    """The head's HTTP server, with the user token."""

    def __init__(self, host: str, port: int, token: str) -> None:
        self.host, self.port, self.token = host, port, token

    def get(self, path: str, timeout_s: float = TIMEOUT_S, **query: Any) -> Any:
        """The answer's JSON. Raises HeadUnreachable, HeadRefused."""
        with self.stream(path, timeout_s, **query) as response:
            return json.loads(response.read())

    def post(self, path: str, body: dict[str, Any], timeout_s: float = TIMEOUT_S) -> Any:
        """As `get`, for what changes something."""
        with self.stream(path, timeout_s, json.dumps(body).encode()) as response:
            return json.loads(response.read())

    def text(self, path: str, timeout_s: float = TIMEOUT_S, **query: Any) -> str:
        with self.stream(path, timeout_s, **query) as response:
            return str(response.read().decode())

    @contextmanager
    def stream(self, path: str, timeout_s: float | None, body: bytes | None = None, **query: Any) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        given = urlencode({key: value for key, value in query.items() if value is not None}, doseq=True)
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, path + (f"?{given}" if given else ""), body, headers={"Authorization": f"Bearer {self.token}"})
            response = connection.getresponse()
            if response.status != 200:
                raise HeadRefused(_refusal(response))
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise HeadUnreachable(f"the head at {self.host}:{self.port} does not answer: {error or type(error).__name__}") from error
        finally:
            connection.close()


def _refusal(response: http.client.HTTPResponse) -> str:
    body = response.read(1 << 16)
    try:
        text = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        text = body.decode("utf-8", "replace").strip()
    if response.status == 401:
        return f"the head refused the token: {text}"
    return str(text) or f"the head answered {response.status}"


def find_head(address: str | None = None, token_file: str | None = None, temp_dir: str | None = None) -> Head:
    """Raises HeadUnreachable naming what was looked at."""
    address = address or os.environ.get(ADDRESS_VARIABLE) or None
    nodes = living_nodes(base_directory(temp_dir))
    token_file = token_file or os.environ.get(TOKEN_FILE_VARIABLE) or None
    if address in (None, "auto"):
        chosen = next((node for node in nodes if not node.private and node.http_address), None)
        if chosen is None and not any(not node.private for node in nodes):
            chosen = _of_a_program(nodes)
        if chosen is None:
            joined = next((node for node in nodes if not node.private), None)
            hint = " Run `shoal start --head`, or give --address."
            if joined:
                hint = f" This host has a node of the cluster at {joined.gcs_address}; give the head's --address."
            raise HeadUnreachable(f"no head of this user runs on this host (looked in {base_directory(temp_dir)}).{hint}")
        return _head(chosen.http_address, token_file, chosen)
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http" or not parts.hostname or not parts.port:
        raise HeadUnreachable(f"--address {address!r}: HOST:PORT or http://HOST:PORT is wanted")
    told = f"{parts.hostname}:{parts.port}"
    same = next((node for node in nodes if told in (*node.gcs_address.split(","), node.http_address) and node.http_address), None)
    return _head(same.http_address if same else told, token_file, same)


def _of_a_program(nodes: list[NodeFile]) -> NodeFile | None:
    """The head of the cluster that a program has started for itself, where there is no other."""
    heads = [node for node in nodes if node.http_address]
    if len(heads) > 1:
        raise HeadUnreachable(f"{len(heads)} programs run clusters of their own here: give --address, one of {', '.join(node.http_address for node in heads)}")
    return heads[0] if heads else None


def head_of_node(node_dir: str, http_address: str) -> Head:
    """For a process that is connected through the node of this directory. Raises HeadUnreachable."""
    if not http_address:
        raise HeadUnreachable("this cluster has no HTTP server to ask: leave init(include_dashboard=False) away, or shoal start --include-dashboard=false")
    return _head(http_address, os.environ.get(TOKEN_FILE_VARIABLE) or None, read_node(Path(node_dir)))


def _head(http_address: str, token_file: str | None, node: NodeFile | None) -> Head:
    from shoal_base.auth import read_secret

    path = Path(token_file) if token_file else Path(node.secrets_dir) / "user.token" if node else None
    if path is None:
        raise HeadUnreachable(
            f"the head at {http_address} wants a user token: give --token-file, or set {TOKEN_FILE_VARIABLE} "
            "(on the head's host, `shoal get-auth-token` shows it)"
        )
    host, _, port = http_address.rpartition(":")
    return Head(host.strip("[]"), int(port), read_secret(path).decode())
