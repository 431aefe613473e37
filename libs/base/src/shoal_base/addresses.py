"""host:port, IPv6 in brackets."""

from __future__ import annotations


def parse_address(text: str) -> tuple[str, int]:
    """Raises ValueError that shows the text.

    >>> parse_address("127.0.0.1:6379"), parse_address("[::1]:80")
    (('127.0.0.1', 6379), ('::1', 80))
    """
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"address {text!r}: write an IPv6 address in brackets, [::1]:6379")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"address {text!r} is no HOST:PORT, such as 10.0.0.5:6379")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """
    >>> format_address("::1", 80)
    '[::1]:80'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
