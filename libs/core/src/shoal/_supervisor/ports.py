"""TCP ports: a free one, a taken one, a listener."""

from __future__ import annotations

import socket

_BACKLOG = 128


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def free_port(host: str) -> int:
    """One that nobody listens on now."""
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_taken(host: str, port: int) -> bool:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return True
    return False


def bind_listener(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    sock = socket.socket(_family(host))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        return sock
    except BaseException:
        sock.close()
        raise


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [HOST]:PORT. Raises ValueError.

    >>> split_address("[::1]:6380"), split_address("head:6380")
    (('::1', 6380), ('head', 6380))
    """
    host, colon, port = address.strip().rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is no HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def someone_listens(address: str, timeout_s: float = 3.0) -> str:
    """Empty when a connection succeeds, else why not."""
    try:
        host, port = split_address(address)
        socket.create_connection((host, port), timeout_s).close()
    except ValueError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return ""
