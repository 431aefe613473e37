"""Secrets, the handshake over real sockets, signatures on a clock of the test's own."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from shoal_base import auth
from shoal_base.auth import (
    KIND_NODE,
    KIND_USER,
    AuthenticationFailed,
    HandshakeRefused,
    Secrets,
    accept_authenticated,
    connect_authenticated,
    finish_handshake,
    make_secret_file,
    open_authenticated,
    read_secret,
)
from shoal_base.signing import MAX_NONCES, WINDOW_MS, SignatureRefused, Signer, Verifier

NODE, USER = b"n" * 32, b"u" * 32
SECRETS = Secrets(NODE, USER)
TARGET = bytes(range(16))


# -- files


def test_a_secret_file_is_private_made_once_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "d" / "node.secret"
    secret = make_secret_file(path)
    assert len(secret) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert make_secret_file(path) == secret == read_secret(path)
    assert os.listdir(path.parent) == ["node.secret"]
    assert Secrets.read(path.parent) == Secrets(secret, None)


def test_two_makers_at_once_get_the_same_secret(tmp_path: Path) -> None:
    code = f"from shoal_base.auth import make_secret_file; print(make_secret_file({str(tmp_path / 's')!r}).decode())"
    makers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    assert len({maker.communicate(timeout=60)[0] for maker in makers}) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s"
    make_secret_file(path)
    path.chmod(mode)
    with pytest.raises(PermissionError, match="chmod 600"):
        read_secret(path)


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 5000])
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="16 to 4096"):
        read_secret(path)


def test_secrets_do_not_show_in_a_repr() -> None:
    assert "nnn" not in repr(SECRETS)


# -- the handshake

Accepted = Callable[[socket.socket], Coroutine[Any, Any, Any]]


def with_server(client: Callable[[str], Any], server: Accepted) -> tuple[Any, Any]:
    """Runs `client(address)` in a thread against `server(accepted socket)`; what each returned or raised."""

    async def main() -> tuple[Any, Any]:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            called = loop.run_in_executor(None, client, f"127.0.0.1:{listener.getsockname()[1]}")
            sock, _ = await loop.sock_accept(listener)
            with sock:
                results = await asyncio.gather(called, server(sock), return_exceptions=True)
            return results[0], results[1]

    return asyncio.run(asyncio.wait_for(main(), 30))


def welcoming(secrets: Secrets = SECRETS, why_not: str = "") -> Accepted:
    async def server(sock: socket.socket) -> tuple[int, bytes, bytes]:
        try:
            kind, target = await accept_authenticated(sock, secrets, 5)
        except AuthenticationFailed:
            sock.close()
            raise
        finish_handshake(sock, why_not)
        rest = b"" if why_not else await asyncio.get_running_loop().sock_recv(sock, 100)
        return kind, target, rest

    return server


def calling(kind: int, secret: bytes, target: bytes = TARGET) -> Callable[[str], None]:
    def client(address: str) -> None:
        with connect_authenticated(address, kind, secret, target, 5) as sock:
            sock.sendall(b"hello")

    return client


@pytest.mark.parametrize(("kind", "secret"), [(KIND_NODE, NODE), (KIND_USER, USER)])
def test_who_knows_the_secret_comes_in_with_its_target(kind: int, secret: bytes) -> None:
    client, server = with_server(calling(kind, secret), welcoming())
    assert client is None
    assert server == (kind, TARGET, b"hello")


def test_the_asyncio_client_comes_in_too() -> None:
    def client(address: str) -> None:
        async def main() -> None:
            with await open_authenticated(address, KIND_NODE, NODE, TARGET, 5) as sock:
                await asyncio.get_running_loop().sock_sendall(sock, b"hello")

        asyncio.run(main())

    assert with_server(client, welcoming())[1] == (KIND_NODE, TARGET, b"hello")


@pytest.mark.parametrize("secrets", [Secrets(b"x" * 32, b"y" * 32), Secrets(None, USER), Secrets()])
def test_a_wrong_secret_is_refused_on_both_sides(secrets: Secrets) -> None:
    client, server = with_server(calling(KIND_NODE, NODE), welcoming(secrets))
    assert isinstance(client, AuthenticationFailed)
    assert "does not know our node secret" in str(client)
    assert isinstance(server, AuthenticationFailed)


def test_the_asyncio_client_refuses_a_server_without_the_secret() -> None:
    def client(address: str) -> None:
        asyncio.run(open_authenticated(address, KIND_NODE, NODE, TARGET, 5))  # type: ignore[arg-type]

    assert isinstance(with_server(client, welcoming(Secrets(b"x" * 32)))[0], AuthenticationFailed)


def test_the_user_token_does_not_open_the_nodes_door() -> None:
    assert isinstance(with_server(calling(KIND_NODE, USER), welcoming())[0], AuthenticationFailed)


def test_an_unknown_kind_is_refused() -> None:
    assert isinstance(with_server(calling(7, NODE), welcoming())[1], AuthenticationFailed)


def test_the_servers_reason_reaches_the_client() -> None:
    client, _ = with_server(calling(KIND_NODE, NODE), welcoming(why_not="no worker 00010203 here"))
    assert isinstance(client, HandshakeRefused)
    assert "no worker 00010203 here" in str(client)


def test_a_replayed_handshake_is_refused() -> None:
    said: list[bytes] = []

    def recorded(address: str) -> None:
        client = auth._Client(address, KIND_NODE, NODE, TARGET)
        host, port = auth.parse_address(address)
        with socket.create_connection((host, port), 5) as sock:
            sock.sendall(client.opening)
            answer = client.answer(sock.recv(64, socket.MSG_WAITALL))
            sock.sendall(answer + b"hello")
            said.extend((client.opening, answer))
            assert sock.recv(1) == b"\0"

    def replayed(address: str) -> bytes:
        host, port = auth.parse_address(address)
        with socket.create_connection((host, port), 5) as sock:
            sock.sendall(said[0])
            sock.recv(64, socket.MSG_WAITALL)
            sock.sendall(said[1])
            return sock.recv(1)

    assert with_server(recorded, welcoming())[1] == (KIND_NODE, TARGET, b"hello")
    client, server = with_server(replayed, welcoming())
    assert client == b"\1"
    assert isinstance(server, AuthenticationFailed)


def test_a_handshake_in_single_bytes_is_understood() -> None:
    def client(address: str) -> bytes:
        state = auth._Client(address, KIND_NODE, NODE, TARGET)
        host, port = auth.parse_address(address)
        with socket.create_connection((host, port), 5) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in state.opening:
                sock.send(bytes([byte]))
            for byte in state.answer(sock.recv(64, socket.MSG_WAITALL)) + b"hello":
                sock.send(bytes([byte]))
            return sock.recv(1)

    client_got, server = with_server(client, welcoming())
    assert client_got == b"\0"
    assert server[:2] == (KIND_NODE, TARGET)


@pytest.mark.parametrize("first", [b"", b"SHOL", b"SHOL\x01\x00" + bytes(31)])
def test_a_client_that_stops_in_the_middle_is_cut_off_in_time(first: bytes) -> None:
    def client(address: str) -> bytes:
        host, port = auth.parse_address(address)
        with socket.create_connection((host, port), 5) as sock:
            sock.sendall(first)
            return sock.recv(1)

    async def server(sock: socket.socket) -> None:
        try:
            await accept_authenticated(sock, SECRETS, 0.2)
        finally:
            sock.close()

    began = time.monotonic()
    _, got = with_server(client, server)
    assert isinstance(got, TimeoutError)
    assert time.monotonic() - began < 5


def test_a_server_that_says_nothing_does_not_hold_the_client() -> None:
    async def silent(sock: socket.socket) -> None:
        await asyncio.get_running_loop().sock_recv(sock, 1000)
        await asyncio.get_running_loop().sock_recv(sock, 1000)

    def client(address: str) -> None:
        connect_authenticated(address, KIND_NODE, NODE, TARGET, 0.2)

    got, _ = with_server(client, silent)
    assert isinstance(got, TimeoutError)
    assert "handshake" in str(got)


@pytest.mark.parametrize("data", [b"SHOL\x09\x00" + bytes(32), b"XXXX\x01\x00" + bytes(32)])
def test_another_version_or_protocol_is_refused(data: bytes) -> None:
    def client(address: str) -> None:
        host, port = auth.parse_address(address)
        with socket.create_connection((host, port), 5) as sock:
            sock.sendall(data)
            sock.recv(1)

    async def server(sock: socket.socket) -> None:
        try:
            await accept_authenticated(sock, SECRETS, 5)
        finally:
            sock.close()

    assert isinstance(with_server(client, server)[1], AuthenticationFailed)


def test_auth_does_not_import_grpc() -> None:
    code = "import sys, shoal_base.auth, shoal_base.connection; assert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- signatures

NOW = 1_700_000_000_000
METHOD = "/shoal.gcs.v1.Gcs/Nodes"


def verifier() -> Verifier:
    return Verifier(SECRETS.by_name())


def test_a_signature_names_its_kind_and_counts_once() -> None:
    check = verifier()
    signature = Signer("user", USER).sign(METHOD, NOW)
    assert check.verify(signature, METHOD, NOW) == "user"
    with pytest.raises(SignatureRefused, match="made before"):
        check.verify(signature, METHOD, NOW)
    with pytest.raises(SignatureRefused, match="made before"):
        check.verify(signature, METHOD, NOW + WINDOW_MS)


@pytest.mark.parametrize("later", range(0, 4 * WINDOW_MS, WINDOW_MS // 3))
def test_no_moment_lets_a_replay_in(later: int) -> None:
    check = verifier()
    for skew in (-WINDOW_MS, 0, WINDOW_MS):
        signature = Signer("node", NODE, offset_ms=skew).sign(METHOD, NOW)
        check.verify(signature, METHOD, NOW)
        check.verify(Signer("node", NODE).sign(METHOD, NOW + later), METHOD, NOW + later)
        with pytest.raises(SignatureRefused):
            check.verify(signature, METHOD, NOW + later)


def test_old_nonces_are_forgotten() -> None:
    check = verifier()
    for n in range(10):
        check.verify(Signer("node", NODE).sign(METHOD, NOW + n * WINDOW_MS), METHOD, NOW + n * WINDOW_MS)
    assert sum(map(len, check._nonces.values())) <= 3


def test_the_nonces_are_bounded() -> None:
    check = verifier()
    check._nonces[NOW // WINDOW_MS] = set(map(str, range(MAX_NONCES)))
    with pytest.raises(SignatureRefused, match="try again later"):
        check.verify(Signer("node", NODE).sign(METHOD, NOW), METHOD, NOW)


def test_a_signature_is_for_one_method_one_secret_and_one_kind() -> None:
    signature = Signer("node", NODE).sign(METHOD, NOW)
    for wrong in (signature.replace("node", "user"), Signer("node", USER).sign(METHOD, NOW), signature[:-1], "", "1:2:3", signature.replace(":1700", ":1701")):
        with pytest.raises(SignatureRefused):
            verifier().verify(wrong, METHOD, NOW)
    with pytest.raises(SignatureRefused):
        verifier().verify(signature, "/shoal.gcs.v1.Gcs/KillActor", NOW)


def test_a_skewed_clock_is_told_the_time_and_gets_through() -> None:
    check, signer = verifier(), Signer("node", NODE)
    behind = NOW - 5 * WINDOW_MS
    signature = signer.sign(METHOD, behind)
    with pytest.raises(SignatureRefused, match="-300 s off") as refused:
        check.verify(signature, METHOD, NOW)
    assert signer.adapt(signature, refused.value.server_time, behind)
    assert check.verify(signer.sign(METHOD, behind + 7), METHOD, NOW + 7) == "node"


def test_a_time_told_by_someone_else_is_not_believed() -> None:
    signer = Signer("node", NODE)
    signature = signer.sign(METHOD, NOW)
    for told in ("", "123", f"{NOW}:{'0' * 64}", "x:y"):
        assert not signer.adapt(signature, told, NOW)
    assert signer.offset_ms == 0


def test_only_the_holder_of_the_secret_is_told_the_time() -> None:
    with pytest.raises(SignatureRefused) as refused:
        verifier().verify(Signer("node", b"w" * 32).sign(METHOD, 0), METHOD, NOW)
    assert refused.value.server_time == ""
