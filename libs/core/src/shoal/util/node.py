"""Facts about this node."""

from __future__ import annotations

import os
import socket

from .. import _runtime


def get_node_ip_address(address: str | None = None) -> str:
    """The address by which other nodes reach this one.

    Args:
        address: "host:port" that the way out is looked up for; nothing is sent.
    """
    if _runtime.state.node_ip and address is None:
        return _runtime.state.node_ip
    host, _, port = (address or "8.8.8.8:53").rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, int(port)))
            found: str = probe.getsockname()[0]
            return found
        except OSError:
            return "127.0.0.1"


def get_node_instance_id() -> str | None:
    """The cloud's name for this machine, where the launcher gave one in SHOAL_CLOUD_INSTANCE_ID."""
    return os.environ.get("SHOAL_CLOUD_INSTANCE_ID")
