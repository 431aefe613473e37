"""How the ranks of a group find each other: rank 0 opens a store of torch's, the control store tells the others where."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ... import _runtime, ext

NAMESPACE = "shoal.collective"
# One attempt to reach an address; it may be one that a destroyed group of the same name has left.
_ATTEMPT_S = 5.0
_PAUSE_S = 0.02


@dataclass
class Meeting:
    """A joined store. Rank 0's is the server: it lives as long as the group."""

    store: Any
    key: bytes
    address: bytes


def torch_distributed() -> Any:
    """The module; much of what it offers is not in its types."""
    from torch import distributed

    return distributed


def group_key(group_name: str) -> bytes:
    now = _runtime.current()
    job_id = now.job_id if now is not None else _runtime.state.job_id
    return f"{job_id.hex()}/{group_name}".encode()


def meet(group_name: str, rank: int, world_size: int, timeout_s: float) -> Meeting:
    """Joins the group's store. Raises TimeoutError, naming what was waited for."""
    key = group_key(group_name)
    if rank == 0:
        return _open(key, timeout_s)
    deadline = time.monotonic() + timeout_s
    trouble = "rank 0 has not called init_collective_group()"
    while (left := deadline - time.monotonic()) > 0:
        address = ext.kv_get(key, namespace=NAMESPACE, wait_s=left)
        if address is None:
            break
        store, trouble = _join(address, rank, min(_ATTEMPT_S, max(0.1, deadline - time.monotonic())))
        if store is not None:
            return Meeting(store, key, address)
        time.sleep(_PAUSE_S)
    raise TimeoutError(f"rank {rank} of {world_size} could not join the collective group {group_name!r} within {timeout_s:g} s: {trouble}")


def _open(key: bytes, timeout_s: float) -> Meeting:
    host = _runtime.state.node_ip or "127.0.0.1"
    store = torch_distributed().TCPStore(host, 0, None, True, timedelta(seconds=timeout_s), wait_for_workers=False)
    store.add("joined/0", 1)
    address = f"{host} {store.port}".encode()
    ext.kv_put(key, address, namespace=NAMESPACE, with_job=True)
    return Meeting(store, key, address)


def _join(address: bytes, rank: int, timeout_s: float) -> tuple[Any, str]:
    """(store, why not). A rank that is there already: another process has it, or the group is one of the past."""
    host, _, port = address.decode().rpartition(" ")
    try:
        store = torch_distributed().TCPStore(host, int(port), None, False, timedelta(seconds=timeout_s), wait_for_workers=False)
        count = store.add(f"joined/{rank}", 1)
    except (RuntimeError, ValueError) as error:
        return None, f"rank 0 at {host}:{port} cannot be reached ({str(error).splitlines()[0]})"
    return (store, "") if count == 1 else (None, f"rank {rank} has joined already, from another process")


def leave(meeting: Meeting, rank: int) -> None:
    """Rank 0 takes the address away, unless a newer group of that name has put its own."""
    if rank == 0 and _runtime.state.engine is not None and ext.kv_get(meeting.key, namespace=NAMESPACE) == meeting.address:
        ext.kv_delete(meeting.key, namespace=NAMESPACE)
